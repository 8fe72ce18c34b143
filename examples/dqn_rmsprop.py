"""Deep Q-learning in plain NumPy with the RMSprop of the DQN paper: a paddle learns to catch a falling ball.

The ball starts in a random column at the top of a 10 x 5 board and falls one row a step; the paddle below moves left,
stays or moves right. The reward is 1 for a catch, -1 for a miss. As in the paper there are a replay memory, a target
network, clipped errors and exploration that falls to 0.1.

RMSprop: Mnih et al., "Human-level control through deep reinforcement learning", Nature 518, 2015, Extended Data
Table 1: both moving averages decay by 0.95 ("gradient momentum", "squared gradient momentum"), 0.01 is added to the
squared gradient ("min squared gradient"). In their NeuralQLearner.lua this is centered RMSprop with eps under the root
and no momentum of the step. Their learning rate is 2.5e-4 for 50 million frames; this game of a few seconds has 5e-3.
"""

from __future__ import annotations

import numpy as np

import proptim

ROWS, COLUMNS, ACTIONS = 10, 5, 3
EPISODES, MEMORY, BATCH, DISCOUNT, SYNC = 1500, 2000, 32, 0.99, 200
rng = np.random.default_rng(0)


def observe(row, ball, paddle):
    """The board as numbers: 1 where the ball is and 1 where the paddle is."""
    board = np.zeros((ROWS, COLUMNS), np.float32)
    board[row, ball] = board[ROWS - 1, paddle] = 1
    return board.ravel()


def new_params():
    """Weights and biases of 50 -> 32 -> 3; the last layer starts at zero, so that all actions have the same value."""
    w1 = rng.standard_normal((ROWS * COLUMNS, 32), np.float32) * np.float32((2 / (ROWS * COLUMNS)) ** 0.5)
    return [w1, np.zeros(32, np.float32), np.zeros((32, ACTIONS), np.float32), np.zeros(ACTIONS, np.float32)]


def values(params, x):
    """The hidden layer, and the value of each action."""
    w1, b1, w2, b2 = params
    hidden = np.maximum(x @ w1 + b1, 0)
    return hidden, hidden @ w2 + b2


def gradients(params, target_params, x, action, reward, after, over):
    """Gradients of the squared error of Q-learning, its derivative clipped to [-1, 1]; summed over the batch."""
    hidden, q = values(params, x)
    best = values(target_params, after)[1].max(axis=1)
    chosen = np.arange(len(x)), action
    out = np.zeros_like(q)
    out[chosen] = np.clip(q[chosen] - reward - DISCOUNT * best * ~over, -1, 1)
    back = out @ params[2].T * (hidden > 0)
    return [x.T @ back, back.sum(axis=0), hidden.T @ out, out.sum(axis=0)]


params = new_params()
target_params = [p.copy() for p in params]
optimizer = proptim.RMSprop(params, lr=5e-3, alpha=0.95, eps=0.01, centered=True, eps_inside_sqrt=True)
memory = np.zeros(MEMORY, [("x", "f4", ROWS * COLUMNS), ("action", "i8"), ("reward", "f4"),
                           ("after", "f4", ROWS * COLUMNS), ("over", "?")])  # fmt: skip
seen = 0


def play(explore, learn):
    """One game; the reward at its end."""
    global seen
    ball, paddle = rng.integers(COLUMNS), COLUMNS // 2
    state = observe(0, ball, paddle)
    for row in range(1, ROWS):
        action = rng.integers(ACTIONS) if rng.random() < explore else values(params, state)[1].argmax()
        paddle = min(max(paddle + action - 1, 0), COLUMNS - 1)
        over = row == ROWS - 1
        reward = (1.0 if ball == paddle else -1.0) if over else 0.0
        after = observe(row, ball, paddle)
        if learn:
            memory[seen % MEMORY] = state, action, reward, after, over
            seen += 1
            if seen >= BATCH and seen % 4 == 0:  # a step every four moves, as in the paper
                batch = memory[rng.integers(min(seen, MEMORY), size=BATCH)]
                optimizer.step(gradients(params, target_params, *(batch[name] for name in memory.dtype.names)))
                if optimizer.steps % SYNC == 0:
                    for target, p in zip(target_params, params, strict=True):
                        target[...] = p
        state = after
    return reward


first = np.mean([play(explore=0.0, learn=False) for _ in range(200)])
print(f"before         mean reward {first:+.2f}")
for block in range(5):
    explore = max(0.1, 1 - block / 3)
    rewards = [play(explore, learn=True) for _ in range(EPISODES // 5)]
    print(f"episode {(block + 1) * EPISODES // 5:5}  mean reward {np.mean(rewards):+.2f}, exploring {explore:.0%}")
last = np.mean([play(explore=0.0, learn=False) for _ in range(200)])
print(f"after {optimizer.steps} steps, without exploring: mean reward {last:+.2f}")
assert first < 0
assert last > 0.9
