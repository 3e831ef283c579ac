"""Whole inputs as people write them, healthy and broken, each with what an audit of it has to say."""
