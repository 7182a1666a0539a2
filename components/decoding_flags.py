"""The flags of decoding, for every command that has a model answer. Their defaults are those of `DecodeSettings`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from paligemma.choices import DecodingWeights
from paligemma.decoding.settings import DecodeSettings

_PANEL = "Decoding"


@dataclass(frozen=True)
class DecodingFlags:
    """A flag for each field of `DecodeSettings`."""

    max_new_tokens: Annotated[
        int, typer.Option(help="Maximum tokens of an answer, including eos.", min=1, rich_help_panel=_PANEL)
    ] = DecodeSettings.max_new_tokens
    temperature: Annotated[
        float, typer.Option(help="Above 0, tokens are drawn at this temperature.", min=0, rich_help_panel=_PANEL)
    ] = DecodeSettings.temperature
    top_k: Annotated[
        int, typer.Option(help="Sample among this many most likely tokens; 0 for all.", min=0, rich_help_panel=_PANEL)
    ] = DecodeSettings.top_k
    top_p: Annotated[
        float,
        typer.Option(
            help="Sample among the most likely tokens whose probabilities reach this sum.", max=1, rich_help_panel=_PANEL
        ),
    ] = DecodeSettings.top_p
    best_of: Annotated[
        int, typer.Option(help="Samples per row; the most likely one is the answer.", min=1, rich_help_panel=_PANEL)
    ] = DecodeSettings.best_of
    beams: Annotated[int, typer.Option(help="Beam width; 1 decodes greedily.", min=1, rich_help_panel=_PANEL)] = (
        DecodeSettings.beams
    )
    seed: Annotated[
        int, typer.Option(help="Seed of the samples, together with the row's identity.", min=0, rich_help_panel=_PANEL)
    ] = DecodeSettings.seed
    weights: Annotated[
        DecodingWeights,
        typer.Option(help="Quantize weights on loading; a token reads them all. stored: as they are.", rich_help_panel=_PANEL),
    ] = DecodeSettings.weights

    def settings(self) -> DecodeSettings:
        """The settings that the flags say.

        Raises:
            InputError: two of them contradict each other.
        """
        return DecodeSettings(**asdict(self))
