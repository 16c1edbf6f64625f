# https://docs.vllm.ai/en/latest/features/structured_outputs.html
import json
import re
from enum import Enum

from openai import OpenAI
from pydantic import BaseModel

client = OpenAI(
    base_url="http://localhost:8000/v1",
    api_key="-",
)
model = client.models.list().data[0].id

completion = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Classify this sentiment: vLLM is wonderful!"}],
    extra_body={"structured_outputs": {"choice": ["positive", "negative"]}},
)
print(completion.choices[0].message.content)

completion = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Generate an example email address. Ends in .com."}],
    extra_body={
        "structured_outputs": {"regex": r"[a-z0-9.]{1,20}@\w{6,10}\.com\n"},
        "stop": ["\n"],
    },
)
assert re.fullmatch(r"[a-z0-9.]{1,20}@\w{6,10}\.com", completion.choices[0].message.content)


class CarType(str, Enum):  # noqa: UP042
    SEDAN = "SEDAN"
    SUV = "SUV"


class CarDescription(BaseModel):
    model: int
    car_type: CarType


completion = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Generate a JSON with the most iconic car."}],
    response_format={
        "type": "json_schema",
        "json_schema": {
            "name": "car-description",
            "schema": CarDescription.model_json_schema(),
        },
    },
    temperature=0,
)
print(json.loads(completion.choices[0].message.content).keys())

simplified_sql_grammar = """
    root ::= "SELECT " column " from " table " where " condition
    column ::= "col_1 " | "col_2 "
    table ::= "table_1 " | "table_2 "
    condition ::= column "= " number
    number ::= "1 " | "2 "
"""
completion = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Generate an SQL query."}],
    extra_body={"structured_outputs": {"grammar": simplified_sql_grammar}},
)
print(completion.choices[0].message.content)
