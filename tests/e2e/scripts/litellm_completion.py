# https://docs.litellm.ai/docs/providers/openai_compatible
import os

import litellm

response = litellm.completion(
    model="openai/gpt-4o-mini",
    api_key="sk-1234",
    api_base=os.environ["OPENAI_BASE_URL"],
    messages=[{"role": "user", "content": "Count to five."}],
    temperature=0,
)
print(response.choices[0].message.content)
pieces = litellm.completion(
    model="openai/gpt-4o-mini",
    api_key="sk-1234",
    api_base=os.environ["OPENAI_BASE_URL"],
    messages=[{"role": "user", "content": "Count to five."}],
    temperature=0,
    stream=True,
)
print("".join(piece.choices[0].delta.content or "" for piece in pieces))
