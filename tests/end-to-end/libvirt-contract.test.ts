import { join } from 'node:path';
import { test } from 'node:test';
import { hypervisorContract } from '../../src/testing/hypervisor-contract.ts';
import { guestDiskBytes, openLibvirtWorld } from './libvirt-world.ts';
import { insideOwnWorld } from './nfs-world.ts';

/** The contract of the Hypervisor port on a real libvirt, QEMU and our NFS server. */
if (process.env['ROUSE_TEST_WORLD'] === '1') {
  hypervisorContract('libvirt', async () => {
    const world = await openLibvirtWorld();
    const sourceMachineId = await world.startGuest('source', 'qcow2');
    return {
      hypervisor: world.driver,
      hostId: world.hostId,
      datastore: world.datastore,
      folder: 'web01',
      disk: { name: 'vda', file: 'vda-flat.vmdk', sizeBytes: guestDiskBytes },
      targetDatastoreId: 'production',
      sourceMachineId,
      slowBytesPerSecond: 65_536,
      scratchDirectory: join(world.directory, 'scratch'),
      close: world.close,
    };
  });
} else {
  test('the hypervisor contract on libvirt, in a world of its own', async () => {
    await insideOwnWorld(import.meta.filename);
  });
}
