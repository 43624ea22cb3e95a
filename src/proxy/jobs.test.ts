import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RouseError } from '../errors.ts';
import { FakeClock } from '../testing/fake-clock.ts';
import { Jobs, type JobProgress } from './jobs.ts';
import type { JobResult } from './port.ts';

const spec = { kind: 'verify', id: 'job1' } as const;
const result: JobResult = { kind: 'restore', bytes: 1 };

/** A job that ends when told to. */
function heldJobs() {
  const started: JobProgress[] = [];
  let finish: (value: JobResult) => void = () => undefined;
  let fail: (error: Error) => void = () => undefined;
  const jobs = new Jobs((_spec, progress) => {
    started.push(progress);
    return new Promise((resolve, reject) => {
      finish = resolve;
      fail = reject;
      progress.signal.addEventListener('abort', () => reject(progress.signal.reason));
    });
  }, new FakeClock());
  return { jobs, started, finish: () => finish(result), fail: (error: Error) => fail(error) };
}

test('starting the same job again answers the one that runs', async () => {
  const { jobs, started, finish } = heldJobs();
  jobs.start(spec);
  jobs.start(spec);
  assert.equal(started.length, 1);
  finish();
  const view = await jobs.view('job1', 1_000, 1);
  assert.equal(view.state, 'done');
  assert.deepEqual(view.result, result);
  assert.equal(jobs.start(spec).state, 'done');
  assert.equal(started.length, 1);
});

test('a job that failed starts anew', async () => {
  const { jobs, started, fail } = heldJobs();
  jobs.start(spec);
  fail(new RouseError('disk-full', 'no space'));
  const view = await jobs.view('job1', 1_000, 1);
  assert.equal(view.state, 'failed');
  assert.equal(view.error?.code, 'disk-full');
  jobs.start(spec);
  assert.equal(started.length, 2);
});

test('a caller that waits is woken by progress', async () => {
  const { jobs, started } = heldJobs();
  const { version } = jobs.start(spec);
  const news = jobs.view('job1', 1_000, version);
  started[0]?.update({ doneBytes: 5, totalBytes: 10 });
  assert.equal((await news).doneBytes, 5);
});

test('a cancelled job says so, and an unknown one is not found', async () => {
  const { jobs } = heldJobs();
  jobs.start(spec);
  await jobs.cancel('job1');
  assert.equal((await jobs.view('job1')).state, 'cancelled');
  await assert.rejects(jobs.view('other'), { code: 'not-found' });
});

test('a proxy that closes ends its jobs, and says that it is away instead of cancelled', async () => {
  const { jobs, started } = heldJobs();
  const { version } = jobs.start(spec);
  const news = jobs.view('job1', 1_000, version);
  const closed = jobs.close();
  await assert.rejects(news, { code: 'proxy-unreachable' });
  await closed;
  assert.equal(started[0]?.signal.aborted, true);
  assert.throws(() => jobs.start(spec), { code: 'proxy-unreachable' });
});
