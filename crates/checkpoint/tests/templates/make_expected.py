#!/usr/bin/env python3
"""Write expected.json: what Jinja2, set up as transformers sets it up, makes of the templates here.

    python3 -m venv venv && venv/bin/pip install jinja2 && venv/bin/python make_expected.py
"""

import json
from pathlib import Path

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = Path(__file__).parent
CONVERSATIONS = [
    [("user", "Hi there")],
    [("system", " Be kind. "), ("user", "What is 2+2?"), ("assistant", " 4 "), ("user", 'And "<b>" & é?\n')],
]


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def main():
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    expected = []
    for path in sorted(HERE.glob("*.jinja")):
        template = environment.from_string(path.read_text())
        for conversation in CONVERSATIONS:
            messages = [{"role": role, "content": content} for role, content in conversation]
            for generate in (False, True):
                rendered = template.render(
                    messages=messages, add_generation_prompt=generate, bos_token="<s>", eos_token="</s>"
                )
                expected.append({"template": path.name, "messages": conversation, "add_generation_prompt": generate,
                                 "rendered": rendered})
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
