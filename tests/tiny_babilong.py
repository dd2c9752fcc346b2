"""Questions of qa1, a tokenizer and a background of two books, for the tests."""

from lm_experiments_tools.data import babi, babi_simulator, background, embedded_text, tokenizer


def make_data(folder):
    """Questions, tokenizer, background, and `folder` that they are in."""
    questions = babi.read_questions(babi_simulator.write_task(folder, "qa1", "train", 300, seed=0))
    text = folder / "books"
    text.mkdir()
    stream = embedded_text.sentences(seed=1)
    for name in ("a.txt", "b.txt"):
        (text / name).write_text("\n".join(next(stream) for _ in range(400)))
    source = background.find_source([str(text)])
    texts = [f" {s}" for q in questions for s in (*q.facts, q.question, q.answer)] + list(source.texts())
    words = tokenizer.train_tokenizer(texts, "test", 600, folder)
    prepared = background.prepare_background(source, words, tokenizer.tokenizer_identity(words), folder)
    return questions, words, prepared, folder
