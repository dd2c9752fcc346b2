"""Generation through Hugging Face's `generate`: memory, open segments, beams, padding."""

import pytest
import torch
from tiny_models import SEGMENT, VOCAB, close, make, padded, tokens
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast, StoppingCriteria, StoppingCriteriaList, TextStreamer

GREEDY = dict(do_sample=False, eos_token_id=None, pad_token_id=0)


@pytest.mark.parametrize("prompt", [SEGMENT - 2, SEGMENT, 2 * SEGMENT + 1])
def test_greedy_generation_equals_rereading_everything_for_each_token(family, kind, prompt):
    model = make(family, kind)
    ids = tokens(2, prompt)
    generated = model.generate(ids, max_new_tokens=2 * SEGMENT + 1, **GREEDY)
    uncached = model.generate(ids, max_new_tokens=2 * SEGMENT + 1, use_cache=False, **GREEDY)
    for _ in range(2 * SEGMENT + 1):
        ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(generated, ids) and torch.equal(uncached, ids)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("cached", [True, False])
def test_a_padded_batch_generates_what_each_row_generates_alone(family, kind, side, cached):
    model = make(family, kind)
    rows = [tokens(1, n, seed=n) for n in (2 * SEGMENT + 3, SEGMENT - 2, SEGMENT)]
    ids, mask, _ = padded(rows, side)
    generated = model.generate(ids, attention_mask=mask, max_new_tokens=2 * SEGMENT + 2, use_cache=cached, **GREEDY)
    for i, row in enumerate(rows):
        alone = model.generate(row, max_new_tokens=2 * SEGMENT + 2, **GREEDY)
        assert torch.equal(generated[i, ids.shape[1] :], alone[0, row.shape[1] :])


def test_pieces_of_any_length_equal_one_forward(family, kind):
    model = make(family, kind)
    rows = [tokens(1, n, seed=n) for n in (SEGMENT + 2, 4)]
    ids, mask, _ = padded(rows, "left")
    more = tokens(2, 5 * SEGMENT, seed=9)
    output = model(ids, attention_mask=mask, use_cache=True)
    pieces = []
    for piece in more.split([1, SEGMENT + 3, 3, 2 * SEGMENT, 5], dim=1):
        output = model(piece, cache=output.cache)
        pieces.append(output.logits)
    for i, row in enumerate(rows):
        whole = model(torch.cat((row, more[i : i + 1]), dim=1)).logits
        close(torch.cat(pieces, dim=1)[i], whole[0, row.shape[1] :], 1e-4)


def test_padding_between_pieces_is_skipped(kind):
    model = make(kind=kind)
    ids, more = tokens(2, SEGMENT + 1), tokens(2, SEGMENT, seed=3)
    mask = torch.ones_like(more)
    mask[1, 2:] = 0
    cache = model(ids, use_cache=True).cache
    output = model(more, attention_mask=mask, cache=cache)
    after = model(ids[:, :1], cache=output.cache).logits
    for i, length in enumerate((SEGMENT, 2)):
        row = torch.cat((ids[i], more[i, :length], ids[i, :1])).unsqueeze(0)
        whole = model(row).logits[0]
        close(output.logits[i, :length], whole[SEGMENT + 1 : -1], 1e-4)
        close(after[i, 0], whole[-1], 1e-4)


def test_the_cache_stays_as_large_as_a_segment_whatever_the_rows_places(kind):
    model = make(kind=kind)
    ids, mask, _ = padded([tokens(1, 5), tokens(1, 2)], "left")
    cache = model(ids, attention_mask=mask, use_cache=True).cache
    for token in tokens(2, 6 * SEGMENT).split(1, dim=1):
        model(token, cache=cache)
        assert cache.columns <= SEGMENT + model.memory_sizes[0]
        assert cache.keys_values.get_seq_length() == cache.columns


def best_by_hand(model, prompt, state, beams, length):
    """Beam search without a cache: every hypothesis is read anew."""
    hypotheses = [(0.0, prompt)]
    for _ in range(length):
        grown = []
        for score, ids in hypotheses:
            scores = model(ids, memory_state=state).logits[0, -1].log_softmax(-1)
            grown += [(score + scores[t].item(), torch.cat((ids, torch.tensor([[t]])), 1)) for t in range(VOCAB)]
        hypotheses = sorted(grown, key=lambda pair: -pair[0])[:beams]
    return hypotheses[0][1][0]


def test_beams_reorder_memory_and_open_segments(family, kind):
    model = make(family, kind)
    state = model(tokens(2, 2 * SEGMENT, seed=4)).memory_state
    ids = tokens(2, SEGMENT - 2)
    found = model.generate(
        ids, memory_state=state, num_beams=3, max_new_tokens=SEGMENT + 2, length_penalty=0.0, **GREEDY
    )
    for i in range(2):
        expected = best_by_hand(model, ids[i : i + 1], state.select([i]), beams=3, length=SEGMENT + 2)
        assert torch.equal(found[i], expected)


def test_memory_is_forked_for_several_returned_sequences(kind):
    model = make(kind=kind)
    state = model(tokens(2, 2 * SEGMENT)).memory_state
    ids = tokens(2, 3)
    torch.manual_seed(0)
    sampled = model.generate(ids, memory_state=state, do_sample=True, num_return_sequences=3, max_new_tokens=9, top_k=5)
    assert sampled.shape == (6, 12)
    torch.manual_seed(0)
    repeated = model.generate(
        ids.repeat_interleave(3, 0), memory_state=state.repeat(3), do_sample=True, max_new_tokens=9, top_k=5
    )
    assert torch.equal(sampled, repeated)


def test_generation_stops_at_the_end_token_and_pads(family):
    model = make(family)
    ids = tokens(2, SEGMENT)
    free = model.generate(ids, max_new_tokens=8, **GREEDY)[:, SEGMENT:]
    end = int(free[0, 2])
    stopped = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=end, pad_token_id=0)[:, SEGMENT:]
    first = free[0].tolist().index(end)
    assert stopped[0, : first + 1].tolist() == free[0, : first + 1].tolist()
    assert (stopped[0, first + 1 :] == 0).all()


class Seen(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= SEGMENT + 4)


def test_criteria_scores_and_the_returned_cache():
    model = make()
    ids = tokens(1, SEGMENT)
    output = model.generate(
        ids, max_new_tokens=50, stopping_criteria=StoppingCriteriaList([Seen()]), return_dict_in_generate=True,
        output_scores=True, **GREEDY,
    )  # fmt: skip
    assert output.sequences.shape == (1, SEGMENT + 4) and len(output.scores) == 4
    close(output.scores[3], model(output.sequences[:, :-1]).logits[:, -1])
    # the cache goes on where generation ended, also when the whole conversation is given again
    longer = torch.cat((output.sequences, tokens(1, 3)), dim=1)
    name = "cache" if "cache" in output else "past_key_values"  # before transformers 5.24
    continued = model.generate(longer, **{name: output[name]}, max_new_tokens=4, **GREEDY)
    assert torch.equal(continued, model.generate(longer, max_new_tokens=4, **GREEDY))


def letter_tokenizer():
    letters = "abcdefghijklmnopqrstuvwxyzABCD"
    tokenizer = Tokenizer(models.BPE({"<pad>": 0} | {letter: i + 1 for i, letter in enumerate(letters)}, []))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


def test_stop_strings_and_a_streamer(capsys):
    model, tokenizer = make(), letter_tokenizer()
    ids = tokens(1, 4)
    options = GREEDY | dict(max_new_tokens=8, suppress_tokens=[0])
    free = model.generate(ids, **options)
    pair = tokenizer.decode(free[0, 6:8])
    streamer = TextStreamer(tokenizer, skip_prompt=True)
    stopped = model.generate(ids, stop_strings=[pair], tokenizer=tokenizer, streamer=streamer, **options)
    end = tokenizer.decode(free[0, 4:]).index(pair) + 2
    assert stopped[0].tolist() == free[0, : 4 + end].tolist()
    assert capsys.readouterr().out.strip() == tokenizer.decode(stopped[0, 4:])


def test_an_open_segment_that_is_not_committed_grows(kind):
    model = make(kind=kind, positions=64)
    ids = tokens(1, SEGMENT + 2)
    output = model(ids, use_cache=True)
    for token in tokens(1, SEGMENT + 3).split(1, dim=1):
        output = model(token, cache=output.cache, commit_open_segment=False)
    assert output.cache.state.segments_seen.tolist() == [1]
    assert output.cache.used.tolist() == [2 + SEGMENT + 3 + model.memory_sizes[0]]
    generated = model.generate(ids, max_new_tokens=2 * SEGMENT, commit_open_segment=False, **GREEDY)
    committed = model.generate(ids, max_new_tokens=2 * SEGMENT, **GREEDY)
    room = SEGMENT - 2
    assert torch.equal(generated[:, : SEGMENT + 2 + room], committed[:, : SEGMENT + 2 + room])


def test_a_cache_is_refused_beside_a_state_and_for_another_batch():
    model = make()
    output = model(tokens(1, 4), use_cache=True)
    state = model(tokens(1, SEGMENT)).memory_state
    with pytest.raises(ValueError, match="either memory_state or cache"):
        model(tokens(1, 1), cache=output.cache, memory_state=state)
    with pytest.raises(ValueError, match="no token in any row"):
        model(tokens(1, 1), attention_mask=torch.zeros(1, 1), cache=output.cache)
    with pytest.raises(ValueError, match=r"\(3, 1, 24, 16\).*\(3, 2, 24, 16\)"):
        model(tokens(2, 1), cache=output.cache)
