"""Registration alone, against known truth: how exact, how close to the bound, how honest its confidence.

`scenes` makes pairs whose shift is exact; `studies` measures; `rivals` compares with OpenCV and SimpleITK; `__main__`
writes the tables and the figure.
"""
