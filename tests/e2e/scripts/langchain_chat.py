# https://python.langchain.com/docs/integrations/chat/openai/
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

llm = ChatOpenAI(model="gpt-4o-mini", temperature=0, max_retries=0)
messages = [("system", "You are helpful."), ("human", "Count to five.")]
print(llm.invoke(messages).content)
print("".join(chunk.content for chunk in llm.stream(messages)))


@tool
def get_weather(city: str) -> str:
    """Get the weather of a city"""
    return f"sunny in {city}"


reply = llm.bind_tools([get_weather]).invoke("What is the weather in Paris?")
print(reply.tool_calls[0]["name"], reply.tool_calls[0]["args"])
