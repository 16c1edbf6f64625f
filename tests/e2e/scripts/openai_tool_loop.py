# https://cookbook.openai.com/examples/how_to_call_functions_with_chat_models
import json

from openai import OpenAI

client = OpenAI()


def get_weather(city):
    return json.dumps({"city": city, "weather": "sunny"})


tools = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
                "additionalProperties": False,
            },
            "strict": True,
        },
    }
]
messages = [{"role": "user", "content": "What is the weather in Paris?"}]
available_functions = {"get_weather": get_weather}

for _ in range(3):
    response = client.chat.completions.create(
        model="gpt-4o-mini", messages=messages, tools=tools, tool_choice="auto", temperature=0
    )
    response_message = response.choices[0].message
    messages.append(response_message)
    if not response_message.tool_calls:
        break
    for tool_call in response_message.tool_calls:
        function_args = json.loads(tool_call.function.arguments)
        function_response = available_functions[tool_call.function.name](**function_args)
        print("called with", function_args)
        messages.append(
            {
                "tool_call_id": tool_call.id,
                "role": "tool",
                "name": tool_call.function.name,
                "content": function_response,
            }
        )

print(messages[-1].content)
