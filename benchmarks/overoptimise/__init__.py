"""What does a policy learn that is paid by each reward? REINFORCE in real TextWorld games, beyond the need.

    python -m benchmarks.overoptimise [--fast] [--updates N] [--seed N] [--out FOLDER]

A small policy (a GRU over the embeddings of what it did and saw) chooses among the admissible commands of
the game and four claims, such as "yes" or the goal itself, which the game answers but which change nothing.
It starts as a clone of noisy players and is trained by REINFORCE (Williams 1992), with the mean return of
the other rollouts in the same game as baseline, against one reward at a time. Beside *gold*, the share of
games won, are measured

* *hacked*: share of rollouts that fail and are paid at least what an honest success of their game is paid
  on average;  *claims*: share of steps that are claims;
* *KL*: mean over rollouts of the summed KL(policy || start) over what it could do at each step;
* *alarm*: whether `valuegraph.monitor` finds the batch unlike what the start policy does; it sees no reward.

Rewards: a yes/no evaluator as one gets it and one trained on these games, goal similarity of every step and
of the last, the outcome alone, and ours as a total and step by step. Weaker cures of the evaluator: stopping
early (at the best update by gold, which takes an oracle, or before the first alarm, which does not), weights
blended with the start policy, a penalty on the KL between embeddings of samples. And *filtering*: best-of-n
of the start policy (never trained, so that it cannot drift), and cloning its top quantile, against REINFORCE.
"""
