import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RouseError } from '../errors.ts';
import { systemClock } from '../lib/clock.ts';
import { hypervisorContract } from '../testing/hypervisor-contract.ts';
import { MemoryHypervisor } from './memory.ts';

hypervisorContract('memory', async () => {
  const hypervisor = new MemoryHypervisor(systemClock);
  hypervisor.addMachine({
    name: 'source',
    power: 'on',
    configuration: JSON.stringify({
      networks: [{ mac: '52:54:00:00:00:01', network: 'default', connected: true }],
    }),
    networks: [{ mac: '52:54:00:00:00:01', network: 'default', connected: true }],
    disks: [{ name: 'vda', sizeBytes: 1 << 20, format: 'raw', source: '/production/source.raw' }],
  });
  return {
    hypervisor,
    hostId: 'host-1',
    datastore: {
      name: 'rouse-contract',
      server: '127.0.0.1',
      path: '/default/Recover-a-1',
      nfsPort: 2049,
      mountPort: 2049,
    },
    folder: 'source',
    disk: { name: 'vda', file: 'vda-flat.vmdk', sizeBytes: 1 << 20 },
    targetDatastoreId: 'production',
    sourceMachineId: 'uuid-of-source',
    slowBytesPerSecond: 65_536,
    scratchDirectory: '/scratch',
    close: () => Promise.resolve(),
  };
});

test('a scripted fault is used up by one call, before or after its effect', async () => {
  const hypervisor = new MemoryHypervisor(systemClock);
  const machine = hypervisor.addMachine({ name: 'one' });
  const lost = new RouseError('host-unreachable', 'the answer was lost');
  hypervisor.faults.failOnce('powerOn');
  await assert.rejects(hypervisor.powerOn(machine.id), { code: 'hypervisor-error' });
  assert.equal(await hypervisor.powerState(machine.id), 'off');
  hypervisor.faults.failOnce('powerOn', lost, 'after');
  await assert.rejects(hypervisor.powerOn(machine.id), lost);
  assert.equal(await hypervisor.powerState(machine.id), 'on');
  await hypervisor.powerOn(machine.id);
  assert.equal(hypervisor.faults.unused, 0);
  assert.equal(hypervisor.faults.calls.filter((call) => call === 'powerOn').length, 3);
});

test('a held call waits for its gate', async () => {
  const hypervisor = new MemoryHypervisor(systemClock);
  const machine = hypervisor.addMachine({ name: 'one' });
  const gate = Promise.withResolvers<void>();
  hypervisor.faults.holdOnce('powerOff', gate.promise);
  machine.power = 'on';
  const off = hypervisor.powerOff(machine.id, 'off');
  assert.equal(await hypervisor.powerState(machine.id), 'on');
  gate.resolve();
  await off;
  assert.equal(await hypervisor.powerState(machine.id), 'off');
});
