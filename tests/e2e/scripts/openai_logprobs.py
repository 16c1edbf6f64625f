# https://cookbook.openai.com/examples/using_logprobs
from math import exp

from openai import OpenAI

client = OpenAI()

response = client.chat.completions.create(
    model="gpt-4o-mini",
    messages=[{"role": "user", "content": "Count to five."}],
    max_tokens=10,
    temperature=0,
    logprobs=True,
    top_logprobs=2,
)
for token in response.choices[0].logprobs.content:
    top_two_logprobs = token.top_logprobs
    linear = [round(exp(logprob.logprob) * 100, 2) for logprob in top_two_logprobs]
    assert bytes(token.bytes).decode("utf-8", "replace") == token.token
    print(token.token, linear)
