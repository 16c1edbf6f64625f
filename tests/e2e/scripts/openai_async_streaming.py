# https://github.com/openai/openai-python#async-usage and #streaming-responses
import asyncio

from openai import AsyncOpenAI

client = AsyncOpenAI()


async def main() -> None:
    stream = await client.chat.completions.create(
        model="gpt-4o-mini",
        messages=[{"role": "user", "content": "Count to five."}],
        stream=True,
        stream_options={"include_usage": True},
        temperature=0,
    )
    async for chunk in stream:
        if chunk.usage is not None:
            print(f"\n{chunk.usage.completion_tokens} tokens")
        elif chunk.choices[0].delta.content is not None:
            print(chunk.choices[0].delta.content, end="")


asyncio.run(main())
