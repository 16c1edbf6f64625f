# https://github.com/openai/openai-python/blob/main/helpers.md
from openai import AsyncOpenAI, OpenAI

client = OpenAI()

with client.chat.completions.stream(
    model="gpt-4o-mini",
    messages=[{"role": "user", "content": "Count to five."}],
    temperature=0,
    logprobs=True,
) as stream:
    for event in stream:
        if event.type == "content.delta":
            print(event.delta, flush=True, end="")
        elif event.type == "content.done":
            print("\nContent done:", event.content)
        elif event.type == "logprobs.content.done":
            print(len(event.content), "log-probabilities")

print("---------------")
print(stream.get_final_completion().choices[0].finish_reason)
print(AsyncOpenAI.__name__)
