# https://platform.openai.com/docs/guides/structured-outputs
from typing import Literal

from openai import OpenAI
from pydantic import BaseModel, Field

client = OpenAI()


class CalendarEvent(BaseModel):
    name: Literal["science fair", "party"]
    day: Literal["Monday", "Friday"]
    participants: list[Literal["Alice", "Bob"]] = Field(max_length=2)


completion = client.chat.completions.parse(
    model="gpt-4o-mini",
    messages=[
        {"role": "system", "content": "Extract the event information."},
        {"role": "user", "content": "Alice and Bob are going to a science fair on Friday."},
    ],
    response_format=CalendarEvent,
)

event = completion.choices[0].message.parsed
print(type(event).__name__, event.day)
