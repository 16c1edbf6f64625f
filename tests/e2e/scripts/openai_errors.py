# https://github.com/openai/openai-python#handling-errors
import openai
from openai import OpenAI

client = OpenAI()

try:
    client.embeddings.create(model="gpt-4o-mini", input="The food was delicious.")
except openai.BadRequestError as e:
    print(e.status_code, e.code, e.param)
    print(e.message)

try:
    client.chat.completions.create(
        model="gpt-unknown", messages=[{"role": "user", "content": "Say this is a test"}]
    )
except openai.NotFoundError as e:
    print(e.status_code, e.code)
    print(e.request_id is not None)
