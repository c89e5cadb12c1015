"""Runs that push to the Hub: what belongs to a checkpoint goes there, with the project's own card, and nothing else."""

from pathlib import Path
from typing import Any

from audiollm.publishing.card import CardError, write_card
from audiollm.publishing.push import upload_checkpoint
from huggingface_hub import CommitOperationAdd, HfApi
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

#: Where transformers puts what a run is resumed from.
LAST_CHECKPOINT = "last-checkpoint"
#: A pickle with local paths and tokens in it; the rest of a checkpoint resumes without it.
NEVER = ("training_args.bin",)


def write_card_if_mine(folder: str | Path, repo: str | None = None) -> None:
    """Writes or renews a checkpoint's card; one that somebody wrote without our sections is left, and that is said."""
    try:
        card = write_card(folder, repo=repo)
    except CardError as error:
        print(f"No model card was written: {error}")
        return
    for remark in card.remarks:
        print(f"Model card: {remark}")


class HubTrainer(Trainer):
    """The Trainer, whose pushes leave out pickles, optimizer states (unless `--hub_strategy` asks for them) and logs."""

    push_in_progress: Any

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The project's own card; marked sections are renewed, and what people wrote stays."""
        if self.is_world_process_zero():
            write_card_if_mine(str(self.args.output_dir), self.hub_model_id)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ):
        """
        Saves and uploads the checkpoint, its code, processor and card; the Trainer's own would upload the whole folder.

        Args, Returns: the Trainer's.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = self.args.hub_token if token is None else token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._finish_current_push()
        return upload_checkpoint(
            HfApi(token=token),
            str(self.args.output_dir),
            str(self.hub_model_id),
            commit_message or "End of training",
            revision=self.args.hub_revision if revision is None else revision,
            run_as_future=not blocking,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As the Trainer's, after a checkpoint was saved; in the background."""
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        message = f"Training in progress, step {self.state.global_step}"
        common: dict[str, Any] = {"revision": self.args.hub_revision, "run_as_future": True}
        api = HfApi(token=self.args.hub_token)
        jobs: list[Any] = [upload_checkpoint(api, checkpoint_folder, str(self.hub_model_id), message, **common)]
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            folder = Path(checkpoint_folder)
            where = LAST_CHECKPOINT if strategy == HubStrategy.CHECKPOINT else folder.name
            files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name not in NEVER]
            operations = [CommitOperationAdd(f"{where}/{path.name}", path) for path in files]
            jobs.append(
                api.create_commit(
                    str(self.hub_model_id), operations, commit_message=f"{message}, checkpoint", **common
                )
            )
        if busy:
            self.push_in_progress.jobs.extend(jobs)
        else:
            self.push_in_progress = PushInProgress(jobs)  # type: ignore[arg-type]  # a list, as in transformers
