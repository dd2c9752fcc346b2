"""Options that every runner has, and option names of earlier scripts that mean nothing here."""

from dataclasses import dataclass

from .args import option


@dataclass
class RunArgs:
    """What the runner does."""

    dry_run: bool = option(False, "print options, parameters, and an estimate of memory and time, and write nothing")
    validate_only: bool = option(False, "no training: validate and test model_cpt, or else the best of model_path")


WITHOUT_EFFECT = {
    "backbone_cpt": "give the backbone with from_pretrained, as a folder",
    "block_size": "samples are made of whole segments",
    "bptt_depth": "give k2",
    "first_seg_len": "it belongs to another model",
    "history_size": "samples are made of whole segments",
    "input_prefix": "it was never read",
    "layers_attr": "layers are found by the backbone's family",
    "max_tokens_in_document": "documents are joined",
    "memory_cell_cls": "the model is chosen by model_type, from_pretrained and model_cfg",
    "min_tokens_in_document": "documents are joined",
    "model_cls": "the model is chosen by model_type, from_pretrained and model_cfg",
    "model_suffix": "checkpoints are folders",
    "pile_subset_names": "name the text with noise_dataset",
    "recurrent_wrapper_cls": "the model is chosen by model_type, from_pretrained and model_cfg",
    "report_to": "TensorBoard and log.jsonl are always written",
    "rwkv_tokenizer": "give tokenizer",
    "working_dir": "start the program in the folder that paths are relative to",
    "wrap_pos": "memory tokens take the positions behind their segment",
}
