/** A machine that is powered on while it is backed up as powered off, on disks that cannot tell. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RouseError } from '../errors.ts';
import { MemoryHypervisor } from '../hypervisors/memory.ts';
import { systemClock } from '../lib/clock.ts';
import type { JobSpec } from '../proxy/port.ts';
import { MemoryProxy } from '../testing/memory-proxy.ts';
import type { Saveset } from '../vault/api.ts';
import type { Json, StepContext } from '../workflows/api.ts';
import { type BackupInput, backupWorkflow } from './taking.ts';
import { BackupTurns } from './turns.ts';

const saveset: Saveset = {
  id: 'saveset1',
  mtree: 'main',
  machine: { id: 'm', name: 'web01' },
  takenAtMs: 1,
  kind: 'full',
  consistency: 'offline',
  disks: [],
  files: [],
  cost: { readBytes: 0, zeroBytes: 0, knownBytes: 0, newBytes: 0, storedBytes: 0 },
  labels: {},
};

/** What step Read answers, when `meanwhile` happens as the proxy reads. */
async function readWhile(
  meanwhile: (hypervisor: MemoryHypervisor, machineId: string) => Promise<void>,
): Promise<{ savesetId?: string; warning?: string }> {
  const hypervisor = new MemoryHypervisor(systemClock, {
    machines: [
      { name: 'web01', disks: [{ name: 'vda', sizeBytes: 1, format: 'raw', source: '/dev/x' }] },
    ],
  });
  const [machine] = (await hypervisor.inventory()).machines;
  assert.ok(machine !== undefined && machine.power === 'off');
  const proxy = new MemoryProxy([saveset]);
  const startJob = proxy.startJob.bind(proxy);
  proxy.startJob = async (spec: JobSpec) => {
    await meanwhile(hypervisor, machine.id);
    return { ...(await startJob(spec)), result: { kind: 'saveset', saveset } };
  };
  const { steps } = backupWorkflow({
    clock: systemClock,
    turns: new BackupTurns(),
    stateOf: async () => 'unknown',
    waits: () => undefined,
    proxy: async () => proxy,
    hypervisor: async () => hypervisor,
    keepFiles: async () => undefined,
    keptFiles: async () => [],
    dropFiles: async () => undefined,
    savesetStored: async () => undefined,
    begun: async () => undefined,
    progress: () => undefined,
    settled: async () => undefined,
  });
  const input: BackupInput = {
    backupId: 'b1',
    machine: { id: machine.id, name: 'web01' },
    mtree: 'main',
    from: { kind: 'machine', hypervisorId: 'h', scratchDirectory: '/tmp', base: null },
  };
  const results = new Map<string, Json>();
  const context: StepContext<BackupInput> = {
    runId: 'b1',
    input,
    result: (name) => results.get(name),
    progress: () => undefined,
    signal: new AbortController().signal,
  };
  for (const step of steps) results.set(step.name, (await step.run(context)) ?? null);
  return results.get('Read') as { savesetId?: string; warning?: string };
}

test('it stays off: nothing is said', async () => {
  const read = await readWhile(async () => undefined);
  assert.deepEqual([read.savesetId, read.warning], ['saveset1', undefined]);
});

test('it is powered on: the saveset is stored with a warning that names the disks', async () => {
  const read = await readWhile((hypervisor, id) => hypervisor.powerOn(id));
  assert.equal(read.savesetId, 'saveset1');
  assert.match(read.warning ?? '', /web01 was powered on while.*: vda may hold a mix/);
});

test('nobody can be asked: that is said as well, and the backup is none the worse', async () => {
  const read = await readWhile(async (hypervisor) => {
    hypervisor.machine = () => Promise.reject(new RouseError('host-unreachable', 'no answer'));
  });
  assert.equal(read.savesetId, 'saveset1');
  assert.match(read.warning ?? '', /whether web01 stayed off while vda was read is not known/);
});
