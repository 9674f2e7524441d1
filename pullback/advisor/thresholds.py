"""Every threshold of the rules, in one place, with where it comes from.

"Convention" means: chosen by the people of this package, and said so in the finding. A convention is no law, so a
finding that rests on one is a warning only where the loss shows that training does not work (``reading.severity``).
"""

from __future__ import annotations

# What counts as lasting, and as learning.
SHARE_OF_MEASUREMENTS = 0.5  # a state counts if at least half of the measurements show it
LEARNS_LOSS = 0.8  # a run learns if its loss fell to this share of the first one measured, above its smallest value,
LEARNS_CHANGES = 3.0  # where that is not known by this many changes from measurement to measurement: noise about a
# level does so in 5 of 100 runs of five measurements, 1 of 100 of twenty,
LEARNS_ACCURACY = 0.8  # or if it gets this share of the samples right
LEARNS_SHARE = 0.9  # where the loss of one answer for all is known: of it, as the last level; convention
FALLS_SHORT = 0.3  # of it, above which training may work but not well; convention
MISTAKE_LEFT = 0.1  # of it, up to which a mistake that was there from the start did no harm; convention
FEW_STEPS = 4  # of the course, below which no level is compared with that
COMPARABLE = 1.5  # loop's loss over measured one, as the median: dropout and regularisers stay below; convention
LEARNT_NOTHING = 0.97  # of the loss of one answer for all: hard data, of which a tenth is explained, stay below it
MANY_STEPS = 30  # of the course, below which nothing is said of a loss that does not fall
UNSEEN_STEPS = 0.5  # of the steps, after the last measurement; convention
ENOUGH_ANSWERS = 64  # samples of which a share of right answers is taken against the loss of all steps
LEAPS = 4.0  # times the loss before: of such a step the measured loss, of after it, says nothing
FEW_RATIOS = 3  # measurements, below which nothing is compared
LEVEL_STDERRS = 2.0  # by which the level has to be above what counts as learning

# Learning rate and loss.
ROSE = 1.2  # the same, of the first tenth of a run that falls short; at most 1.10 in 187 well or slow ones of remedies
DIVERGING = 2.0  # times the first measured loss: random weights do better than the trained ones
DIVERGING_CHANGES = 5.0  # where its smallest value is not known: times its changes and its early range; noise about a
# level does so in 1 of 100 runs of five measurements, 1 of 10,000 of twenty, a loss that grows evenly does not
EVEN_PARTS = 10  # of a course whose levels say whether it rises evenly: two in a row then make a fifth of it
FEW_PARTS = 5  # running medians, below which nothing is even
FEW_UPDATES = 3  # measured first, of which one is long where a rate wrecks a run at once
STEEP = 0.5  # of the rise, within two such parts: of one that is even they make a fifth; convention
STABLE_SHARE = 0.05  # of the limit: steps could be twenty times longer and stay stable; convention
SPIKE_SHARE = 0.3  # of what had been learnt, and of what is left; convention
SPIKE_NOISE = (
    12.0  # standard deviations: of losses of single samples the median of three reaches them once in 1e4 steps
)
LONG_MEMORY = 100  # steps, of which momentum of 0.99 holds all
MANY_SPIKES = 2
SWINGS = -0.5  # correlation of neighbours; noise gives 0 with an error of 1 / sqrt(steps); convention
MANY_SWINGS = 40  # steps, in the second half of a run
SMALL_UPDATE = 1e-5  # |dw| / |w| a step: 1e5 steps to move the weights by their size; convention
LARGE_UPDATE = 0.1  # |dw| / |w| a step: ten steps to move the weights by their size; healthy runs of Adam start at 0.03
GOOD_UPDATE = 0.01  # what a rate that is too high by this is lowered to; convention
WILD_UPDATE = 0.3  # the same of a run that learns and falls short: healthy runs start at up to 0.2; convention
FIRST_UPDATE = 0.5  # of the first step, as long as nothing is known of what is learnt: healthy runs show up to 0.4
REPLACES = (
    10.0  # of the first step of a run that learns nothing: hardly anything is left of the starting weights; convention
)
ALL_AT_ONCE = 5.0  # the same behind batch norm, of which healthy runs bear two; convention
FAR_ABOVE = 5.0  # limits, of a first curvature: healthy runs start at up to three of them; convention
MODEST_UPDATE = 0.05  # what the rate of such a run is lowered to; convention
LITTLE_WAY = 0.1  # of it in all steps: no training moves weights less; convention
TRAVELLED = 1.0  # |dw| / |w| times steps: weights that went that far were not held back by their rate; convention
WELL_TRAVELLED = 3.0  # of the same: what runs that learn well show; convention
HALF_TRAVELLED = 0.5  # to which weights that barely moved are to get; convention
MANY_SHARPNESS = 2  # measurements of curvature below which no rate is called too low
MANY_LOSSES = 5  # measurements of the loss below which its course is not judged
FIRST_STEPS = 10  # a tenth of the memory that Adam's second moments have at 0.99, and all that batch norm has
SHARE_OF_LIMIT = 0.25  # a rate at the limit itself trains badly, and few samples see less than all of the curvature
LOWEST_FACTOR = 1e-3  # of one change: a step that was far too long leaves curvature behind that is not the start's
RAISED = 10.0  # at most, by one change
RAISED_LEAST = 2.0  # where curvature leaves no room for that, the rate is not what holds a run back; convention
RAISED_FAR = 100.0  # of weights that barely moved
HALF_WAY = 0.5  # of the loss of one answer for all, above which a rate can be called too low although training works
HARDLY_BEGUN = 0.8  # of it, with which weights that went less than half of their size were held back; convention
MANY_STEPS_OF_FALL = 40  # of the course, below which its quarters say little
FALLS_BY = 4.0  # standard errors of a quarter's level

# Gradients over depth. The verdict's own threshold is in ``diagnostics.flow``: a hundredfold change of squared norms.
LEAVES = 10.0  # times the last layer's norm: the same change, of norms; where a layer's gradient passes it, it starts
LOST = 2.0**-11.5  # of it: its square is then below what single precision tells of the whole
SURVIVES = 0.01  # of the last layer's norm: the rate itself spans a hundredfold; convention
CHI_PRODUCT = 100.0  # the same hundredfold change, predicted by mean-field theory at initialisation
WILD_START = 8.0  # first loss over that of one answer for all; healthy starts have 1 to 4; convention
WILD_ANYWAY = 1e4  # of the entropy of labels, of a loss of unknown form: sums over a batch's tokens stay below
WILD_NATS = 5.0  # of an entropy above that: the right answer has a hundredth of the chance; healthy ones reach 4.7
WILD_TIMES = 2.0  # and so many times that: sums over the tokens of a sample have more nats
UNBALANCED = 1e4  # largest over smallest |K^(l)| / m_l; healthy runs of benchmarks/studies/pathologies have 2 to 450

DEEP = 12  # layers with weights, from which on these alone do not do: of 16 He's start reached half of what
# normalisation does; convention

# Units.
SATURATED = 0.5  # share of (unit, sample) pairs at the flat ends of the activation; convention
DEAD = 0.5  # share of units that no sample switches on; convention
OFF_BEYOND_CHANCE = 0.75  # the same, where samples look alike: of 24 units by a coin 2.4 standard errors above half
CUT_OFF = 0.1  # share of outputs that are 0 where targets are below; convention
COLLAPSED = 1.05  # effective rank of a layer's activations: squared cosines of samples then average 0.95; convention
ONE_TOKEN = 0.1  # residual of the tokens of a sample over their size: they share 99 percent of its square; convention
ONE_KEY = 0.1  # entropy of a head's rows over its most: they look at one token, or two of many; convention
COLLAPSES_AT_ONCE = (
    0.25  # of the residual, that a layer leaves: skips of random weights leave half at least; convention
)
ENOUGH_UNITS = 8  # layers narrower than this have a small rank anyway
FEW_DIRECTIONS = 3  # samples: one alone has a rank of 1, and of two that are alike it says little
MANY_DIRECTIONS = 8  # samples of all measurements together, below which that they are alike is chance; convention

# Gradients of samples.
ILL_CONDITIONED = 0.75  # log(N / effective rank) / log(N); 1 is a single direction; convention
ALIGNED = 0.3  # mean cosine; as in ``diagnostics.trade_off``
CONFLICT = -0.05  # mean cosine; independent directions give 0; convention
CLASS_CONFLICT = (
    -0.5
)  # mean cosine between classes; C classes that share the softmax alone give -1 / (C - 1); convention
SUSPECT_SHARE = 0.03  # of the measured samples: wrong labels beyond it cost accuracy; convention
HELD_OUT_BETTER = 0.7  # of the training's loss; convention
MANY_COPIES = 0.2  # of the measured samples: batches a fifth of the data, drawn with replacement, have a tenth
MOSTLY_COPIES = 0.3  # of the samples, from which on a warning: what is learnt is learnt of few; convention
CLUMPED = 4.0  # standard errors, as of Poisson's distribution
OUTLIER = 7.0  # modified z-score of log |g|: hard samples of healthy runs reach 6; convention
MANY_SAMPLES = 16  # samples of which one can stand out
UNLEARNT = 0.2  # of the samples right, beyond one answer for all
CONFIDENT = 0.5  # share of suspect labels before anything is learnt over that at the end
HARD_PLACE = 0.15  # of a label that is not the first answer, 0 second and 1 last: healthy runs have 0.06; calibrated
PLACE_ERRORS = 3.0  # standard errors above it: one in seven hundred by chance
SURE_PLACE = 0.3  # the same of samples of which the model holds another class ten times as probable: healthy ones 0.29
MANY_SURE = 12  # of those
FEW_CLASSES = 4  # of three a label that is not the first answer is second or last, however hard the sample is
MANY_RANKED = 15  # samples whose label is not the first answer
PLACES_TELL = 0.7  # of the samples right, at most: of fewer wrong labels each is told by its own odds
SETTLED = 0.15  # of the fall, from the third to the last quarter: an exponential decay after 1.7 of its time constants
FEW_SETTLED = 16  # losses, of which the quarters say little
LABEL_CHANCE = 0.02  # that a share of wrong labels is told to be beyond its limit which is not

# Batch size, in noise scales. At the noise scale itself both cost a factor two, McCandlish et al. (2018).
BATCH_TOO_SMALL = 0.1
BATCH_TOO_LARGE = 10.0
STDERRS = 2.0  # the noise scale is an estimate: it has to be beyond the threshold by so many standard errors
LEAST_SIGNAL = -0.5  # of the unbiased |G|^2 / tr(Sigma): of N samples it is -1 / N at least, in exact numbers
ONE_OR_TWO = 2  # samples a batch: eight cost no more time, so that the noise scale itself is the limit
BATCH_NORM_SAMPLES = 4  # samples a batch, whatever their positions: neighbours in a picture are no further samples
BATCH_NORM_COUNT = 16  # values a statistic: the variance is then off by sqrt(2 / 15) = 37 percent
LARGEST_FACTOR = 16.0  # of the batch size at once
ENOUGH_FOR_NORM = 32  # samples a batch, at which batch norm is as good as it gets: Wu and He (2018), figure 1
AT_NO_COST = 8.0  # times one or two samples a batch: takes hardly longer, on any machine

# Plateaus.
PLATEAU = 0.01  # relative change of the median loss from the third to the last quarter of the measurements; convention
PLATEAU_CHANGES = 1.5  # where the smallest loss is not known also this many of its late changes; a loss that falls
# evenly or by a factor moves by 2 or more
PLATEAU_LOSSES = 8  # measurements below which quarters say nothing
NEGATIVE = 0.01  # of the largest curvature: a smallest eigenvalue below minus this share is a way down; convention

# Inputs. A feature with mean / std = r makes the second-moment matrix about 1 + r^2 times longer along the mean.
MEAN_OVER_STD = 10.0
OFFSET_INPUT = 10.0  # below it offsets do not count: pictures in [-1, 1] have pixels that hardly vary; convention
STD_RATIO = 1000.0  # convention: images with dark corners reach 100
LARGEST_INPUT = 100.0  # convention

FAR_OUT = 20.0  # times as far from the middle of a batch as the median sample; normal noise reaches 5, pictures 3
RARE_BATCHES = 0.05  # of those looked at: fewer hold samples far out in data with a long tail as well; convention
FAR_SHARE = 0.2  # of a batch, up to which samples are outliers and not the data's own shape

# Regimes.
RATE_DECAY = (
    2.0  # times smaller lr / |w|^2 where scale does not matter: after k steps it falls as 1 / sqrt(k); convention
)
LAZY_DRIFT = 0.1  # relative change of the tangent kernel; convention
GENERALISATION_GAP = 0.2  # of accuracy, training minus test; convention
KNOWN_BY_HEART = 0.95  # training accuracy
BY_HEART_LOSS = 0.1  # of that of one answer for all, of samples that are known by heart; convention
BY_HEART_RISE = (
    1.3  # times its minimum, of a held-out error with most of one answer's beside one that is so; convention
)
ACCURACY_FALL = 0.05  # of a held-out accuracy, from its best quarter to its last; convention
LOST_ACCURACY = 0.1  # of the same, which is a harm whatever else is known; convention
ENOUGH_LOOKS = 12  # of which quarters are medians of three
LOSES = 5.0  # times what the accuracy changes from look to look
COMMON = 0.5  # share of the most frequent class, up to which a held-out accuracy says something; convention
MANY_LOOKS = 6  # at it, below which no fall is told from chance
TEST_LOSS_RISE = 1.5  # times its own minimum, while the training loss fell; convention
WORSE_THAN_ONE_ANSWER = 1.1  # times the loss of one answer for all, of a held-out loss that was below; convention
TEST_LOSS_SHARE = 0.2  # where its smallest value is not known: of what the training loss fell; convention

# The loop. Each is a convention, between what mistakes give and what healthy runs of this repository's suite do.
MOVES = 1e-6  # |dw| / |w| of a layer that is trained
NOT_ZEROED = 5.0  # growth of |.grad| over the size of samples' gradients
ZEROED = (
    2.0  # times shorter from one step to the next: sums of all gradients so far lose 1.15 of it, others 1.6 or more
)
RISES = 4.0  # standard errors by which norms that grow from step to step outnumber those of chance; others show 3.4
STANDS = 1e-3  # of a norm, up to which it neither rises nor falls: those of batches drawn anew differ by 0.05
ADDS_UP = 0.35  # of the first norm a step: equal gradients that add up give 1, unrelated ones 0.26 over 8 steps
ADDS_UP_BEYOND = 0.25  # where later ones are longer than the triangle inequality lets a mean be: they turn meanwhile
DECAY_SHARE = 0.5  # of a step's length that decay would make alone; convention
DECAY_COSINE = 0.5  # of a step with minus the weights; a gradient's own is below 0 as a rule: weights grow
DECAY_NORM = 0.5  # last over first norm of all weights
DECAY_HARMS = 0.3  # of the loss of one answer for all, above which decay that dominates is no regulariser
RATE_GONE = 1000.0  # highest over present learning rate
RATE_GONE_SHARE = 0.2  # of the steps; a cosine ends with 2 percent of them there
RATE_GONE_MOST = 0.5  # of the steps, from which on it is a mistake whatever was learnt before
MEDIAN_OF = 3  # steps: a leap is told by the median of so many, which begin one before it
MANY_OUTPUTS = 3  # measurements below which binary scores may lie between 0 and 1 by chance
MANY_NORMS = 5  # of which all that grow by chance are 1 in 120
TAKES_ALL = 0.01  # of the weights a step: no regulariser does that
MANY_RATES = 20  # steps below which a schedule is not judged

# Data.
TARGET_SCALE = 10.0  # standard deviation, or mean, of targets
IMBALANCED = 20.0  # most frequent class over the median of the others
IMBALANCED_SILENT = 4.0  # the same of a model that answers that class for all measured samples; convention
UNSAID = 8  # measured samples of other classes from which on that is no chance
IMBALANCED_ALWAYS = 30.0  # where answering the class always is right in 97 of 100
IN_ORDER = 0.2  # of the targets' spread between batches, beyond chance
MANY_BATCHES = 5  # of which an order shows
MANY_LABELS = 100  # of which frequencies show
LEAST_WITHIN = 1e-9  # of the sum of squares, below which double precision tells no spread within batches
ORDER_ERRORS = 6.0  # standard errors beyond chance; 1e-9 of shuffled runs

# Causes.
FIRST_MEASUREMENT = 1  # the step of the first one by default: what it shows was there at the start
