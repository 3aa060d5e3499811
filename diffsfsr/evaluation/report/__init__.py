"""What a person reads of an evaluation.

columns     the metrics, as they are printed and explained          quoted      the paper's own figures
slices      who and what an average hides                           words       the 135 words, served by which labels
numbers     means, intervals, paired differences                    figures     grids, worst cases, travel strips
sheets      tables and sections as data, and as Markdown            sections    what is said, in order; Tables 1 and 3
page        the same as one HTML file                               files       what is written and read back
overview    Table 1 over all reports of one model
"""
