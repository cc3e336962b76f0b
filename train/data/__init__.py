"""Click logs: read, filtered, cut into sessions and numbered."""
