"""Ask short questions of many kinds, from a seed: what the comparison of two servers' answers is made on."""

from __future__ import annotations

import random

# Ours, and plain on purpose: an instruction-tuned model has something sensible to say to each.
_TASKS = (
    "Explain {topic} to a child of ten.",
    "List three facts about {topic}, one a line.",
    "Write a short letter to a colleague about {topic}.",
    "Translate into French: We talked about {topic} yesterday.",
    "What is the most common mistake that people make with {topic}?",
    "Write a Python function whose name has to do with {topic}, with a docstring.",
    "Summarise what you know about {topic} in two sentences.",
    "Give a JSON object with the keys name, use and risk, about {topic}.",
    "Is it true that {topic} was unknown two hundred years ago? Say why or why not.",
    "Calculate 17 * 23 step by step, then say one sentence about {topic}.",
)
_TOPICS = (
    "bridges", "vaccines", "tides", "compilers", "bread", "glaciers", "chess", "railways", "bees", "insurance",
    "earthquakes", "violins", "batteries", "maps", "concrete", "coffee", "satellites", "elections", "soap", "owls",
    "glass", "inflation", "rivers", "clocks", "paper", "lightning", "cheese", "tunnels", "photography", "salt",
)  # fmt: skip
MOST = len(_TASKS) * len(_TOPICS)


def questions(count: int, seed: int) -> list[str]:
    """Return `count` different questions (at most MOST), the same ones for the same seed."""
    every = [task.format(topic=topic) for task in _TASKS for topic in _TOPICS]
    return random.Random(seed).sample(every, count)
