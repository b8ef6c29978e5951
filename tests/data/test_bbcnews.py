"""News texts in WikiText-2's writing."""

from qslm.data.bbcnews import in_wikitext_style


def test_words_and_punctuation_stand_apart():
    text = 'Firm\'s rise\n\nIt grew 1,200% to £2.5m, said Anglo-American.\n"Not bad!"\n'
    assert in_wikitext_style(text) == (
        ' = Firm \'s rise = \n It grew 1 @,@ 200 % to £ 2 @.@ 5m , said Anglo @-@ American . \n " Not bad ! " \n'
    )


def test_a_lone_title_stays_one_line():
    assert in_wikitext_style("Title") == " = Title = \n"
