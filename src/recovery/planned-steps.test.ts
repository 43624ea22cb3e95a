/** A dry run says of each step what it would do; none is left blank. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Saveset } from '../vault/api.ts';
import type { RecoveryInput } from './plan.ts';
import { type Choice, plannedSteps } from './planned-steps.ts';

const saveset: Saveset = {
  id: 'saveset1',
  mtree: 'main',
  machine: { id: 'm', name: 'web01' },
  takenAtMs: 1,
  kind: 'full',
  consistency: 'crash',
  disks: [{ name: 'vda', root: { hash: '', depth: 0, sizeBytes: 1 << 30 }, source: 'test' }],
  files: [],
  cost: { readBytes: 0, zeroBytes: 0, knownBytes: 0, newBytes: 0, storedBytes: 0 },
  labels: {},
};
const input: RecoveryInput = {
  recoveryId: 'dry-run',
  savesetId: 'saveset1',
  mtree: 'main',
  machine: saveset.machine,
  mode: 'instant',
  name: 'copy',
  hypervisorId: 'kvm',
  host: null,
  clients: [],
  powerOn: true,
  identity: { keep: false, uuid: 'u', macs: [] },
  connectNetworks: false,
  leaseMs: 1,
  datastore: null,
  relocateTo: null,
  relocateAtMs: null,
  target: null,
  disks: null,
  createdMs: 1,
  resumed: false,
};
const choice: Choice = {
  device: { name: 'local', address: '/srv/vault' },
  proxy: 'near',
  host: 'host1',
  clients: ['192.0.2.7'],
  leaseEndsMs: 86_400_000,
};

function shown(more: Partial<RecoveryInput> = {}, other: Partial<Choice> = {}) {
  const steps = plannedSteps({ ...input, ...more }, saveset, { ...choice, ...other });
  assert.equal(steps.length, 11);
  for (const { name, detail } of steps) {
    assert.match(detail, /\S/, name);
    assert.doesNotMatch(detail, /undefined|null/, name);
    assert.notEqual(detail, name, `nothing is said of ${name}`);
  }
  return Object.fromEntries(steps.map(({ name, detail }) => [name, detail]));
}

test('instant access, on the host and proxy that were chosen', () => {
  const steps = shown();
  assert.equal(steps['Proxy'], 'near');
  assert.equal(steps['Host'], 'host1');
  assert.equal(steps['Clone'], '/main/Recover-near-ID');
  assert.equal(steps['Export'], 'to 192.0.2.7 and nobody else');
  assert.match(steps['Configure'] ?? '', /copy, new UUID and MACs, networks disconnected/);
  assert.equal(shown({ powerOn: false })['Power on'], 'not asked for: --power-on');
});

test('the other modes', () => {
  assert.equal(shown({ mode: 'publish' })['Host'], 'for 192.0.2.7');
  assert.equal(shown({ mode: 'publish' })['Datastore'], 'skipped in this mode');
  assert.equal(shown({ mode: 'new', datastore: 'prod' })['Datastore'], 'written to prod');
  const target = { id: 'h', name: 'helper' };
  assert.equal(shown({ mode: 'flr', target, disks: ['vdb'] })['Attach'], 'to helper: vdb');
});

test('when nothing will do, the steps say so', () => {
  const steps = shown({}, { proxy: null, host: null, clients: [] });
  assert.equal(steps['Proxy'], 'none will do');
  assert.equal(steps['Host'], 'none will do');
  assert.equal(steps['Export'], 'to nobody');
});
