import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { RecoveryRow } from '../catalog/recoveries.ts';
import type { Json, RunState, RunView, StepState, StepView } from '../workflows/api.ts';
import { recovery } from './schema.ts';
import { recoveryView, stepNames, type ViewParts } from './view.ts';

const row: RecoveryRow = {
  id: 'abc',
  machineId: 'uuid',
  savesetId: 'saveset1',
  mode: 'instant',
  name: 'web01',
  state: 'starting',
  hypervisorId: 'kvm',
  hypervisorMachineId: null,
  host: null,
  cloneId: null,
  proxy: 'local',
  proxyAddress: '127.0.0.1',
  exportPath: null,
  datastoreName: null,
  createdMs: 1,
  availableMs: null,
  timeToAvailableMs: null,
  leaseEndMs: null,
  endedMs: null,
  clients: [],
  options: {},
  warnings: [],
  error: null,
};

function stepOf(number: number, name: string, state: StepState, more: Partial<StepView> = {}) {
  const begun = state === 'waiting' ? {} : { startedMs: number * 10 };
  const ended = ['done', 'failed', 'undone'].includes(state) ? { endedMs: number * 10 + 5 } : {};
  return { number, name, state, attempts: 1, ...begun, ...ended, ...more };
}

function runOf(part: string, state: RunState, steps: StepView[], input: Json = {}): RunView {
  const ended = ['done', 'failed', 'cancelled'].includes(state) ? { endedMs: 999 } : {};
  const kind = `recovery.${part}`;
  return { id: `abc.${part}`, kind, subject: 'abc', state, input, createdMs: 5, steps, ...ended };
}

const results: Readonly<Record<string, Json>> = {
  Proxy: { detail: 'local: it reaches all', proxy: 'local' },
  Clone: { detail: '/main/Recover-local-abc', path: '/main/Recover-local-abc', disks: [] },
  Export: { detail: 'shared', path: '/main/x', address: '192.0.2.1', nfsPort: 1, mountPort: 2 },
};

/** Steps before `at` are done, that one is in the given state, later ones wait. */
function opening(state: RunState, at: number, stepState: StepState): RunView {
  const steps = stepNames.slice(0, 11).map((name, index) => {
    const number = index + 1;
    const result = results[name] ?? { detail: `${name} is done` };
    if (number < at) return stepOf(number, name, 'done', { result });
    return stepOf(number, name, number === at ? stepState : 'waiting');
  });
  return runOf('open', state, steps);
}

const opened = opening('done', 12, 'waiting');

const closeNames = ['Let go of the machine', 'Unmount', 'Drop the export', 'Drop the clone'];
function closing(state: RunState, at: number, middle: Partial<StepView> & { state: StepState }) {
  const steps = closeNames.map((name, index) => {
    if (index < at) return stepOf(13, name, 'done', { result: { detail: `${name}: done` } });
    return index === at ? stepOf(13, name, middle.state, middle) : stepOf(13, name, 'waiting');
  });
  return runOf('close', state, steps);
}

function view(runs: RunView[], more: Partial<ViewParts> = {}) {
  const seen = recoveryView({
    row,
    runs,
    savesetTakenAtMs: 1,
    machineName: 'web01',
    hypervisorName: 'kvm',
    clone: undefined,
    plannedRelocation: null,
    target: null,
    hasPicture: false,
    ...more,
  });
  // Whatever the state, it is what the API promises.
  recovery.parse(seen);
  assert.deepEqual(
    seen.steps.map(({ number, name }) => `${number} ${name}`),
    stepNames.map((name, index) => `${index + 1} ${name}`),
  );
  return seen;
}

const statesOf = (runs: RunView[]) => view(runs).steps.map(({ state }) => state);
const times = (count: number, state: string) => Array.from({ length: count }, () => state);

test('before anything ran, all thirteen wait', () => {
  assert.deepEqual(statesOf([]), times(13, 'waiting'));
});

test('each step of the opening is shown running, done and waiting in its place', () => {
  for (let at = 1; at <= 11; at++) {
    const expected = [...times(at - 1, 'done'), 'running', ...times(13 - at, 'waiting')];
    assert.deepEqual(statesOf([opening('running', at, 'running')]), expected);
  }
});

test('a step that is skipped says so, and one that is undone right now is running', () => {
  const skipped = stepOf(6, 'Clone', 'done', { result: { detail: 'not here', skipped: true } });
  const seen = view([runOf('open', 'running', [skipped])]).steps[5];
  assert.equal(seen?.state, 'skipped');
  assert.equal(seen?.detail, 'not here');
  assert.equal(view([opening('undoing', 8, 'undoing')]).steps[7]?.state, 'running');
  assert.equal(view([opening('failed', 8, 'undone')]).steps[7]?.state, 'undone');
});

test('a failed step shows why in place of what it did', () => {
  const error = { code: 'busy', message: 'the port is taken', advice: 'Free it.' };
  const step = stepOf(7, 'Export', 'failed', { error });
  const seen = view([runOf('open', 'failed', [step])]).steps[6];
  assert.deepEqual([seen?.state, seen?.detail], ['failed', 'the port is taken']);
});

test('progress is shown while a step runs, and not afterwards', () => {
  const progress = { done: 5, total: 10, unit: 'bytes' } as const;
  const run = (state: StepState) =>
    view([runOf('open', 'running', [stepOf(8, 'Datastore', state, { progress })])]).steps[7];
  assert.deepEqual(run('running')?.progress, progress);
  assert.equal(run('done')?.progress, null);
});

test('relocation is step 12, planned or running or done', () => {
  const plannedRelocation = { target: 'production', atMs: 77 };
  assert.deepEqual(view([opened], { plannedRelocation }).relocation, {
    target: 'production',
    doneBytes: 0,
    totalBytes: 0,
    atMs: 77,
    error: null,
  });
  const to = { to: { id: 'fast', name: 'fast' } };
  const progress = { done: 5, total: 10, unit: 'bytes' } as const;
  const running = stepOf(12, 'Relocate', 'running', { progress });
  const half = view([opened, runOf('relocate', 'running', [running], to)], { plannedRelocation });
  assert.equal(half.steps[11]?.state, 'running');
  const moving = { target: 'fast', doneBytes: 5, totalBytes: 10, atMs: 5 };
  assert.deepEqual(half.relocation, { ...moving, error: null });
  const done = stepOf(12, 'Relocate', 'done', { result: { detail: 'moved', bytes: 10 } });
  const whole = view([opened, runOf('relocate', 'done', [done], to)]);
  assert.deepEqual(
    [whole.steps[11]?.state, whole.relocation?.doneBytes, whole.relocation?.totalBytes],
    ['done', 10, 10],
  );
  const error = { code: 'disk-full', message: 'fast is full', advice: 'Free some.' };
  const failed = runOf('relocate', 'failed', [stepOf(12, 'Relocate', 'undone', { error })], to);
  assert.deepEqual(view([opened, { ...failed, error }]).relocation?.error, error);
});

test('a step that is being taken back tells of that alone', () => {
  const step = stepOf(8, 'Datastore', 'undoing', { result: { detail: 'mounted' } });
  const taking = (more: Partial<RunView>) => {
    const seen = view([{ ...runOf('open', 'undoing', [step]), ...more }]).steps[7];
    return [seen?.state, seen?.detail];
  };
  assert.deepEqual(taking({}), ['running', null], 'what it had done is no news any more');
  const stuck = { code: 'busy', message: 'still used', advice: 'Wait.' };
  assert.deepEqual(taking({ stuck }), ['running', 'still used']);
});

test('the parts of the clean-up make one step with four sub-steps', () => {
  const state = (run: RunView) => view([opened, run]).steps[12]?.state;
  for (let at = 0; at < 4; at++) {
    assert.equal(state(closing('running', at, { state: 'running' })), 'running');
  }
  assert.equal(state(closing('done', 4, { state: 'done' })), 'done');
  const error = { code: 'busy', message: 'still used', advice: 'Wait.' };
  const stuck = view([opened, closing('running', 1, { state: 'running', error })]).steps[12];
  assert.deepEqual([stuck?.state, stuck?.detail], ['running', 'still used']);
  assert.deepEqual(
    stuck?.subSteps.map((step) => step.state),
    ['done', 'running', 'waiting', 'waiting'],
  );
  const failed = view([opened, closing('failed', 1, { state: 'failed', error })]).steps[12];
  assert.deepEqual([failed?.state, failed?.detail], ['failed', 'still used']);
});

test('of several runs of a kind the latest counts', () => {
  const runs = [opened, closing('done', 4, { state: 'done' }), opening('running', 3, 'running')];
  const states = view(runs).steps.map(({ state }) => state);
  assert.deepEqual(states.slice(0, 4), ['done', 'done', 'running', 'waiting']);
});

test('a resumed recovery waits for its clean-up again', () => {
  const runs = [opened, closing('done', 4, { state: 'done' }), opened];
  assert.equal(view(runs).steps[12]?.state, 'waiting');
});

test('clone and export come from what the steps left; an ended recovery exports nothing', () => {
  const running = view([opened]);
  assert.equal(running.proxy, 'local');
  assert.equal(running.clonePath, '/main/Recover-local-abc');
  assert.deepEqual(running.export, {
    path: '/main/x',
    address: '192.0.2.1',
    nfsPort: 1,
    mountPort: 2,
  });
  for (const state of ['done', 'failed', 'cancelled'] as const) {
    assert.equal(view([opened], { row: { ...row, state } }).export, null);
  }
});

test('of one that ended long ago, whose runs are no longer kept, the row is shown', () => {
  const seen = view([], { row: { ...row, state: 'done', endedMs: 7 } });
  assert.equal(seen.steps.length, 13);
  assert.deepEqual([...new Set(seen.steps.map(({ state }) => state))], ['skipped']);
  assert.match(seen.warnings.join(), /ended long ago/);
});
