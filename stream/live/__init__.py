"""What the stream itself teaches: decayed counts of clicks, and the lists that they make.

Pure functions over numpy. Serving, fitting and the prequential evaluation run this code alike.
"""
