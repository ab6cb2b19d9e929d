"""What a text must look like: schemas and grammars, the query language, code monitors, contrastive decoding."""
