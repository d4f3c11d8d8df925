"""Next word or character: language models over one long text."""
