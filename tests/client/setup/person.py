"""A person who is asked about a site's files, and the site that comes of the answers."""

from __future__ import annotations

from client.setup.guess import guess_site
from client.setup.interview import ask
from client.site import load_site

ROWS = 40

PLANTED = ("Doe", "Jane", "77231", "1.2.840.5")


class Person:
    """Answers questions by their first words, else with Enter, and remembers what was said."""

    def __init__(self, **answers):
        self.answers = {question.replace("_", " "): list(given) for question, given in answers.items()}
        self.told: list[str] = []
        self.asked: list[str] = []

    def answer(self, question, guess):
        self.asked.append(f"{question} [{guess}]")
        assert self.asked[-5:] != [self.asked[-1]] * 5, self.told[-1]
        for start, given in self.answers.items():
            if question.startswith(start):
                assert given, f"asked again: {question}; told: {self.told[-1]}"
                return given.pop(0)
        return ""

    def tell(self, text):
        self.told.append(text)

    @property
    def seen(self):
        return "\n".join([*self.told, *self.asked])


def interview(folder, **answers):
    """Return the settings that come of the answers, their text and the person asked."""
    person = Person(**answers)
    text = ask(guess_site(folder), person.answer, person.tell)
    (folder / "site.toml").write_text(text)
    return load_site(folder / "site.toml"), text, person
