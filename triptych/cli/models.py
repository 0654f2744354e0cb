"""`triptych models`: what a gateway serves, and the words that its small models understand."""

import click

from triptych.cli.runs import with_client
from triptych.cli.terminal.json_output import message_to_json
from triptych.client import Client
from triptych.terminal_text import echo, escape
from triptych.v1.pipeline_pb2 import ListModelsResponse
from triptych.v1.stage_pb2 import Stage


@click.command()
@with_client
async def models(client: Client, as_json: bool) -> None:
    """Say which models a gateway serves, what they understand, and what to try."""
    served = await client.list_models()
    if as_json:
        for each in served:
            echo(message_to_json(each))
        return
    if not served:
        raise click.ClickException(f"no stage is served at {client.address}: start workers, then ask again")
    for each in served:
        tell(each)


def tell(served: ListModelsResponse.StageModel) -> None:
    model = served.model
    stage = Stage.Name(model.stage).removeprefix("STAGE_").lower()
    workers = f"{served.num_workers} worker{'' if served.num_workers == 1 else 's'}"
    echo(escape(f"{stage}: {model.name} {model.digest[:12]}  {workers}  {model.device}".rstrip()))
    for kind, words in sorted(model.vocabulary.items()):
        echo(escape(f"  {kind}: {', '.join(words.words)}"))
    for prompt in model.example_prompts:
        echo(escape(f'  try: "{prompt}"'))
