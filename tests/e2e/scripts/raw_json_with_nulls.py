# What langchain-openai sends for ChatOpenAI(model=..., base_url=...).stream("..."), without it.
import json
import os
import urllib.request

body = {
    "messages": [{"content": "Count to five.", "role": "user", "name": None}],
    "model": "gpt-4o-mini",
    "frequency_penalty": None,
    "presence_penalty": None,
    "seed": None,
    "top_p": None,
    "logprobs": None,
    "top_logprobs": None,
    "logit_bias": None,
    "stop": None,
    "max_completion_tokens": 12,
    "n": 1,
    "temperature": 0.7,
    "service_tier": None,
    "store": None,
    "metadata": None,
    "reasoning_effort": None,
    "tools": None,
    "tool_choice": None,
    "response_format": None,
    "user": "someone",
    "stream": True,
    "stream_options": {"include_usage": True},
}
request = urllib.request.Request(
    os.environ["OPENAI_BASE_URL"] + "/chat/completions",
    json.dumps(body).encode(),
    {"Content-Type": "application/json", "Authorization": "Bearer none"},
)
with urllib.request.urlopen(request) as response:
    lines = [line.decode().strip() for line in response]
data = [line[len("data: ") :] for line in lines if line.startswith("data: ")]
print(data[-1], json.loads(data[-2])["usage"]["completion_tokens"] <= 12)
