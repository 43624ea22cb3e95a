import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isRouseError, RouseError } from '../errors.ts';
import type { MachineSummary } from '../hypervisors/port.ts';
import type { Saveset } from '../vault/api.ts';
import { type CatalogDesk, MachineCatalog } from './catalog-service.ts';

const uuid = '564d526f-7573-6500-1122-334455667788';
const machine = (id: string, name: string, own = uuid): MachineSummary => {
  return { id, name, uuid: own, hostId: 'host1', power: 'on' };
};
const saveset = (name: string): Saveset => ({
  id: `saveset-of-${name}`,
  mtree: 'main',
  machine: { id: uuid, name },
  takenAtMs: 1,
  kind: 'full',
  consistency: 'crash',
  disks: [],
  files: [],
  cost: { readBytes: 0, zeroBytes: 0, knownBytes: 0, newBytes: 0, storedBytes: 0 },
  labels: {},
});

function catalogOf(
  machines: readonly MachineSummary[],
  savesets: readonly Saveset[] = [saveset('web01')],
  isSilent = false,
): MachineCatalog {
  const row = { id: 'vc', name: 'vc' };
  const hypervisors = {
    rows: async () => [row],
    row: async () => row,
    inventoryOf: async () => {
      if (isSilent) throw new RouseError('hypervisor-unreachable', 'vc cannot be reached');
      return { machines };
    },
  };
  // What else a desk has is not asked here.
  const desk = { hypervisors, savesets: async () => savesets };
  return new MachineCatalog({
    ...desk,
    activeRecoveries: async () => [],
  } as unknown as CatalogDesk);
}

test('machines that have one UUID are both known, each by its own name', async () => {
  const twins = [
    machine('vm-1', 'web01'),
    machine('vm-2', 'copy'),
    machine('vm-3', 'db01', 'other'),
  ];
  for (const order of [twins, twins.toReversed()]) {
    const catalog = catalogOf(order);
    const seen = (await catalog.machines()).map(({ name, savesets }) => `${name} ${savesets}`);
    assert.deepEqual(seen, ['copy 0', 'db01 0', 'web01 1']);
    const web01 = await catalog.findOnHypervisor('web01', undefined);
    assert.deepEqual([web01.managedId, web01.twin], ['vm-1', 'copy']);
    const copy = await catalog.findOnHypervisor('copy', undefined);
    assert.deepEqual([copy.managedId, copy.twin], ['vm-2', 'web01']);
    assert.equal((await catalog.findOnHypervisor('db01', undefined)).twin, undefined);
    await assert.rejects(catalog.findOnHypervisor(uuid, undefined), (error) => {
      return isRouseError(error, 'bad-request') && /have the same UUID/.test(error.message);
    });
  }
});

test('a machine is found by the name that it had when it was backed up', async () => {
  const renamed = catalogOf([], [saveset('web01-new'), saveset('web01')]);
  assert.equal((await renamed.chooseSaveset({ machine: 'web01-new' })).id, 'saveset-of-web01-new');
  assert.equal((await renamed.chooseSaveset({ machine: 'web01' })).id, 'saveset-of-web01');
  await assert.rejects(renamed.chooseSaveset({ machine: 'db01' }), (error) =>
    isRouseError(error, 'not-found'),
  );
});

test('that a machine is not there is not said while its hypervisor does not answer', async () => {
  await assert.rejects(catalogOf([], [], true).findOnHypervisor('web01', undefined), (error) => {
    return (
      isRouseError(error, 'hypervisor-unreachable') && /vc does not answer/.test(error.message)
    );
  });
  await assert.rejects(catalogOf([], []).findOnHypervisor('web01', undefined), (error) =>
    isRouseError(error, 'not-found'),
  );
});
