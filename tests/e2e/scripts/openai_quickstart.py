# https://github.com/openai/openai-python#usage
from openai import OpenAI

client = OpenAI()

completion = client.chat.completions.create(
    model="gpt-4o-mini",
    messages=[
        {"role": "developer", "content": "Talk like a pirate."},
        {"role": "user", "content": "Count to five."},
    ],
)

print(completion.choices[0].message.content)
