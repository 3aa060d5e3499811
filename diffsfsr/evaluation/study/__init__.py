"""The human study: a page that asks, answers read back, and what they prove.

page            one self-contained HTML file, and the key that knows whose picture is whose
answers         the files of many participants, damaged ones told
significance    analysis of variance and pairwise tests
results         means, shares and p-values, as the paper's Table 2
"""
