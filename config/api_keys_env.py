"""API keys in the environment, which no option may hold: command lines are read by everyone."""

import os

KEY_VARIABLES = ("QUIRE_API_KEY", "QUIRE_API_KEYS")


def api_keys_of_environment() -> list[tuple[str, str]]:
    """(variable, key) pairs: QUIRE_API_KEY holds one, QUIRE_API_KEYS several between commas."""
    one, several = KEY_VARIABLES
    keys = [(one, os.environ.get(one, ""))]
    keys += [(several, key) for key in os.environ.get(several, "").split(",")]
    return [(variable, key.strip()) for variable, key in keys if key.strip()]


def environment_without_keys() -> dict[str, str]:
    """This process's environment as its children may see it."""
    return {name: value for name, value in os.environ.items() if name not in KEY_VARIABLES}
