"""What the command lines of these scripts share."""

import argparse


def positive(kind):
    """A type of arguments that refuses zero and less."""

    def parse(text):
        if not (value := kind(text)) > 0:  # nor NaN
            raise argparse.ArgumentTypeError(f"{text} is not positive")
        return value

    parse.__name__ = kind.__name__  # as argparse calls it where the text is no number at all
    return parse
