import assert from 'node:assert/strict';
import { test } from 'node:test';
import { systemClock, type Clock } from '../lib/clock.ts';
import { nfsLimits } from '../limits.ts';
import { NextCall } from './next-call.ts';

/** A client that sends its next call `thinksMs` after each reply; the event loop turns by hand. */
class Trial {
  nowMs = 1000;
  looks = 0;
  readonly clock: Clock = { ...systemClock, monotonic: () => this.nowMs };
  #scheduled: (() => void)[] = [];
  readonly nextCall = new NextCall(this.clock, (run) => this.#scheduled.push(run));

  /** One call and its reply; answers whether the server was awake when the call came. */
  call(thinksMs: number): boolean {
    const untilMs = this.nowMs + thinksMs;
    while (this.#scheduled.length > 0 && this.nowMs < untilMs) {
      this.nowMs += turnMs;
      this.looks++;
      for (const run of this.#scheduled.splice(0)) run();
    }
    this.nowMs = Math.max(this.nowMs, untilMs);
    const wasAwake = this.nextCall.isLooking;
    this.nextCall.came(this.nowMs);
    this.nextCall.answered(this.nowMs);
    return wasAwake;
  }

  calls(count: number, thinksMs: number): number {
    let awake = 0;
    for (let i = 0; i < count; i++) if (this.call(thinksMs)) awake++;
    return awake;
  }
}

const turnMs = 0.002;
const soonMs = nfsLimits.lookMs / 4;
const lateMs = nfsLimits.lookMs * 2;

test('a client that comes back at once finds the server awake, after a few calls', () => {
  const trial = new Trial();
  const asleep = nfsLimits.lookAfterCalls + 1;
  assert.equal(trial.calls(asleep, soonMs), 0);
  assert.equal(trial.calls(1_000, soonMs), 1_000);
});

test('for clients that come late the event loop sleeps', () => {
  const trial = new Trial();
  trial.calls(1_000, lateMs);
  assert.equal(trial.looks, 0);
});

test('when nobody comes the look ends, and nothing is left scheduled', () => {
  const trial = new Trial();
  trial.calls(nfsLimits.lookAfterCalls + 1, soonMs);
  assert.equal(trial.nextCall.isLooking, true);
  trial.call(1_000);
  assert.ok(trial.looks <= nfsLimits.lookMs / turnMs + 2, `${trial.looks} looks`);
  assert.equal(trial.nextCall.isLooking, false);
});

test('a clock that stands still does not make it look for ever', () => {
  const scheduled: (() => void)[] = [];
  const nextCall = new NextCall({ ...systemClock, monotonic: () => 5 }, (run) =>
    scheduled.push(run),
  );
  for (let i = 0; i <= nfsLimits.lookAfterCalls + 1; i++) {
    nextCall.came(5);
    nextCall.answered(5);
  }
  let looks = 0;
  for (; scheduled.length > 0; looks++) scheduled.pop()?.();
  assert.equal(looks, nfsLimits.looksMax);
});

test('looks in vain become rare: a client that fools it costs a small part of the time', () => {
  const trial = new Trial();
  let vain = 0;
  const startMs = trial.nowMs;
  for (let burst = 0; burst < 5_000; burst++) {
    trial.calls(nfsLimits.lookAfterCalls * 2, soonMs);
    const before = trial.looks;
    trial.call(lateMs);
    vain += (trial.looks - before) * turnMs;
  }
  assert.ok(vain > 0, 'it is fooled at times');
  assert.ok(vain < (trial.nowMs - startMs) / 25, `${vain} ms of looking in vain`);
});

test('a client that pauses now and then finds the server awake all the same', () => {
  const trial = new Trial();
  let awake = 0;
  for (let burst = 0; burst < 1_000; burst++) {
    awake += trial.calls(50, soonMs);
    trial.call(lateMs);
  }
  assert.ok(awake > 1_000 * 40, `${awake} of 50,000 calls`);
});

test('after many looks in vain, calls that come soon again are trusted again', () => {
  const trial = new Trial();
  for (let burst = 0; burst < 2_000; burst++) {
    trial.calls(nfsLimits.lookAfterCalls + 1, soonMs);
    trial.call(lateMs);
  }
  trial.calls(nfsLimits.lookAfterCalls + 400, soonMs);
  assert.equal(trial.calls(1_000, soonMs), 1_000);
});

test('a reply that is still waited for is no reason to stay awake', () => {
  const trial = new Trial();
  trial.calls(nfsLimits.lookAfterCalls + 2, soonMs);
  assert.equal(trial.nextCall.isLooking, true);
  trial.nextCall.came(trial.nowMs + soonMs);
  assert.equal(trial.nextCall.isLooking, false);
});

test('while other calls wait for the disk, no reply keeps the server awake', () => {
  const trial = new Trial();
  trial.calls(nfsLimits.lookAfterCalls + 2, soonMs);
  trial.nextCall.came(trial.nowMs + soonMs);
  trial.nextCall.answered(trial.nowMs + soonMs, true);
  assert.equal(trial.nextCall.isLooking, false);
  trial.nextCall.came(trial.nowMs + 2 * soonMs);
  trial.nextCall.answered(trial.nowMs + 2 * soonMs, false);
  assert.equal(trial.nextCall.isLooking, true);
});
