# https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html#extra-parameters
from openai import OpenAI

client = OpenAI(
    base_url="http://localhost:8000/v1",
    api_key="token-abc123",
)

completion = client.chat.completions.create(
    model="NousResearch/Meta-Llama-3-8B-Instruct",
    messages=[{"role": "user", "content": "Count to five."}],
    extra_body={
        "top_k": 20,
        "min_p": 0.05,
        "repetition_penalty": 1.05,
        "stop_token_ids": [2],
        "skip_special_tokens": True,
        "add_generation_prompt": True,
        "include_stop_str_in_output": False,
        "chat_template_kwargs": {},
        "return_token_ids": True,
        "priority": 0,
        "prompt_logprobs": 1,
    },
    extra_headers={"x-request-id": "sentiment-classification-00001"},
    max_tokens=20,
)
print(completion._request_id)
print(len(completion.prompt_logprobs) == len(completion.prompt_token_ids))
print(len(completion.choices[0].token_ids) == completion.usage.completion_tokens)

completion = client.completions.create(
    model="NousResearch/Meta-Llama-3-8B-Instruct",
    prompt="A robot may not injure a human being",
    extra_body={"ignore_eos": True, "min_tokens": 5},
    max_tokens=5,
)
print(completion.usage.completion_tokens)
