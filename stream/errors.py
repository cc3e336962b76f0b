"""The one base of what is wrong with a deployment, as opposed to bad data and to bugs."""


class StreamError(Exception):
    """A deployment that cannot be served: one sentence for the operator, exit code 2."""


NEWEST_FORMAT = 7
"""The highest format number that may be a future version's of ours; others are no format of ours.

Bytes of 8 and more begin protobuf and text, and 0 begins Avro.
"""


class NewerFormatError(StreamError):
    """A newer version of ours has written it."""
