"""Answers -> vectors: the prompt computed once, or the pooling of the released code."""
