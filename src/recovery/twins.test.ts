/** On vSphere two machines may have one UUID: nothing is done to the one that was not named. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isRouseError } from '../errors.ts';
import type { Inventory, MachineSummary } from '../hypervisors/port.ts';
import { hostOfTarget } from './attaching.ts';
import { refuseTakenName } from './preflight.ts';

const uuid = '564d526f-7573-6500-1122-334455667788';
const machine = (id: string, name: string, hostId: string): MachineSummary => {
  return { id, name, uuid, hostId, power: 'on' };
};
const host = (id: string) => ({ id, name: id, clusterId: null, state: 'connected', addresses: [] });
const inventory = {
  machines: [machine('vm-1', 'web01', 'esx1'), machine('vm-2', 'copy', 'esx2')],
  hosts: [host('esx1'), host('esx2')],
  clusters: [],
  datastores: [],
} as unknown as Inventory;

test('disks are attached to the machine that was named, and to none in doubt', () => {
  const target = { id: uuid, name: 'copy', managedId: 'vm-2' };
  assert.equal(hostOfTarget(inventory, target).host.id, 'esx2');
  const isMissing = (error: unknown) => isRouseError(error, 'not-found');
  assert.throws(() => hostOfTarget(inventory, { ...target, managedId: 'vm-9' }), isMissing);
  assert.throws(() => hostOfTarget(inventory, { id: uuid, name: 'copy' }), isMissing);
  const alone = { ...inventory, machines: inventory.machines.slice(0, 1) };
  assert.equal(hostOfTarget(alone, { id: uuid, name: 'web01' }).host.id, 'esx1');
});

test('an identity that another machine has is not kept', () => {
  const asked = (keep: boolean, name = 'new') => ({
    name,
    mode: 'instant' as const,
    machine: { id: uuid, name: 'web01' },
    identity: { keep, uuid: 'fresh', macs: [] },
  });
  refuseTakenName(inventory, asked(false), undefined);
  const isTaken = (error: unknown) =>
    isRouseError(error, 'already-exists') && /web01 has the UUID/.test(error.message);
  assert.throws(() => refuseTakenName(inventory, asked(true), undefined), isTaken);
  const ours = { ...inventory, machines: inventory.machines.slice(0, 1) };
  refuseTakenName(ours, asked(true, 'web01'), 'vm-1');
});
