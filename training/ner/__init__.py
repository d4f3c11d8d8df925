"""Named entities: tags of words in IOB2, from word and character features, an encoder, and a linear chain."""
