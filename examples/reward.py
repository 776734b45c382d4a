"""Fine-tune a network with a reward: the digits, drawn at random before, are made to be threes by policy gradient.

The reward is what a classifier gives to threes; the chain is Flow-GRPO's, the loss its group-relative policy gradient
with a penalty for leaving the network that it began as. `python reward.py 40` takes a minute of one core.
"""

import sys
from copy import deepcopy
from dataclasses import replace

import torch
from gallery.style import images, save, subplots

import diffsolve as ds
from diffsolve import metrics
from diffsolve.reference import classifier
from diffsolve.reference.digits import load_data

WANTED, BATCH, STEPS, PENALTY = 3, 48, 6, 3.0
updates = int(sys.argv[1]) if len(sys.argv) > 1 else 12

before = ds.load("digits")  # draws any digit where it is told no label
policy = replace(before, net=deepcopy(before.net).requires_grad_(True))
judge = classifier.load()
optimizer = torch.optim.Adam(policy.net.parameters(), lr=3e-4)
rewards = []
for update in range(updates):
    run = ds.solve(policy, (BATCH, 1, 8, 8), solver="flow-sde", steps=STEPS, seed=update, trajectory="calls")
    reward = judge.logits(run.x.clamp(-1, 1)).softmax(1)[:, WANTED]
    now = ds.transition_log_prob(policy, run.trajectory, run.tableau).sum(0) / run.x[0].numel()
    with torch.no_grad():
        then = ds.transition_log_prob(before, run.trajectory, run.tableau).sum(0) / run.x[0].numel()
        gain = reward - PENALTY * (now - then)
        advantage = (gain - gain.mean()) / (gain.std() + 1e-4)
    loss = -(advantage * now).mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.net.parameters(), 1.0)
    optimizer.step()
    rewards.append(float(reward.mean()))
print(f"mean reward {rewards[0]:.2f} at first, {sum(rewards[-5:]) / 5:.2f} in the last five of {updates} updates")

data, labels = load_data()
threes = metrics.Statistics.of(data[labels == WANTED], judge)
told = {"cond": {"label": torch.full((200,), WANTED)}}
for name, model, cond in (("before", before, {}), ("after", policy, {}), ("before, told the label", before, told)):
    x = ds.sample(model, (200, 1, 8, 8), nfe=10, seed=1, **cond).detach()
    far = metrics.frechet(metrics.Statistics.of(x, judge), threes)
    print(f"Frechet distance to the threes of the data {name}: {far:.1f}")

figure, (curve, axis) = subplots(1, 2, width=3.6)
curve.plot(rewards)
curve.set(xlabel="update", ylabel="mean reward", ylim=(0, 1), title="what the classifier gives to threes")
rows = [ds.sample(model, (12, 1, 8, 8), nfe=12, seed=0).detach() for model in (before, policy)]
images(axis, rows, ["before", "after"])
save(figure, __file__)
