"""The flags of decoding, for every command that has a model answer. Their defaults are those of `DecodeSettings`."""

from __future__ import annotations

from typing import Annotated

import typer

_PANEL = "Decoding"

MaxNewTokens = Annotated[int, typer.Option(help="Maximum tokens of an answer, including eos.", min=1, rich_help_panel=_PANEL)]
Temperature = Annotated[
    float, typer.Option(help="Above 0, tokens are drawn at this temperature.", min=0, rich_help_panel=_PANEL)
]
TopK = Annotated[int, typer.Option(help="Sample among this many most likely tokens; 0 for all.", min=0, rich_help_panel=_PANEL)]
TopP = Annotated[
    float,
    typer.Option(help="Sample among the most likely tokens whose probabilities reach this sum.", max=1, rich_help_panel=_PANEL),
]
BestOf = Annotated[int, typer.Option(help="Samples per row; the most likely one is the answer.", min=1, rich_help_panel=_PANEL)]
Beams = Annotated[int, typer.Option(help="Beam width; 1 decodes greedily.", min=1, rich_help_panel=_PANEL)]
Seed = Annotated[
    int,
    typer.Option(help="Seed of the samples, together with the row's identity.", min=0, rich_help_panel=_PANEL),
]
