"""The words that the zoo's texts are made of."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words("Tom Ana Ben Eva Max Lea Sam Mia Jon Zoe Kim Leo Ida Rob Amy Pia Tim Una Nils Vera Otto Rosa Hugo Nina")

THINGS = _words(
    "apples pens books coins cards eggs shells stones cups hats keys nuts pears plums roses seeds shoes "
    "socks spoons stamps tiles toys trees tulips figs beads boxes bricks buttons candles"
)

WORDS = _words(
    "apple bread chair dance eagle flame grape house island jelly knife lemon mango night ocean piano "
    "queen river stone tiger uncle vapor water yacht zebra amber bird cloud dream earth frost glass honey "
    "ivory jump kite light moon nest olive paper quiet rain snow tree umber voice wind year zone arrow "
    "beach candy desk eight fish gold hand ink jazz king lake milk north opal pearl quick road ship table "
    "under violet wolf xylem young zest acorn brick cabin door ember field green hill ice joke koala leaf "
    "maple nut orbit plum quill rose sand train unit vine wheat yarn bell coin drum fern goose harp iron "
    "jade kelp lamp mint noon oak pine rope silk tulip vest wave cedar dusk flute grass heron"
)

COLOURS = _words("red blue green black white brown grey pink gold")

PLACES = _words("park shop school house garden market river station kitchen forest")
