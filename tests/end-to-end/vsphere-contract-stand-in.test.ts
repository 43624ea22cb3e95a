/** The contract of the Hypervisor port on the stand-in for vCenter, QEMU and our NFS server. */
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { startStandIn, writeMachine } from '#lab/vcenter/vcenter.ts';
import { enterWorld, worldAddresses } from '#lab/world.ts';
import { diskDescriptor } from '#src/datastore/disk-descriptor.ts';
import { VsphereHypervisor } from '#src/hypervisors/vsphere/driver.ts';
import { systemClock } from '#src/lib/clock.ts';
import { hypervisorContract } from '#src/testing/hypervisor-contract.ts';
import { MemoryFileSystem } from '#src/testing/memory-file-system.ts';
import { guestDisk, guestDiskBytes } from './libvirt-world.ts';
import { startServer } from './nfs-world.ts';

const world = await enterWorld({ guests: false });

hypervisorContract('vsphere, on the stand-in', async () => {
  const { directory } = world;
  const production = join(directory, 'production');
  await mkdir(production, { recursive: true });
  const image = join(directory, 'source.img');
  await writeFile(image, await guestDisk());
  await writeMachine({ directory: production, name: 'source', disks: [image] });
  const esx1 = await world.addHost('esx1');
  const esx2 = await world.addHost('esx2');
  const vcenter = await startStandIn({
    directory: join(directory, 'vc'),
    inventory: {
      datacenters: [
        {
          name: 'dc1',
          clusters: [
            {
              name: 'cluster1',
              hosts: [esx1, esx2].map(({ name, ipv4, ipv6 }) => ({
                name,
                netns: name,
                addresses: [ipv4, ipv6],
              })),
            },
          ],
          datastores: [{ name: 'production', directory: production }],
          machines: [{ vmx: '[production] source/source.vmx', host: 'esx1', poweredOn: true }],
        },
      ],
      behaviour: { relocateBytesPerSecond: 8 << 20 },
    },
  });
  const hypervisor = new VsphereHypervisor({
    url: vcenter.url,
    user: vcenter.user,
    password: async () => vcenter.password,
    trust: { fingerprint: vcenter.fingerprint },
    clock: systemClock,
  });
  const files = new MemoryFileSystem({ clock: systemClock, capacityBytes: 64 << 20 });
  const flatName = 'scsi0-0-flat.vmdk';
  const uuid = '99999999-8888-4777-8666-555555555555';
  const descriptor = diskDescriptor({ flatName, sizeBytes: guestDiskBytes, uuid });
  files.put(`/source/${flatName}`, await guestDisk());
  files.put('/source/scsi0-0.vmdk', Buffer.from(descriptor));
  const nfs = await startServer();
  const path = '/default/Recover-test-1';
  const clients = [esx1.ipv4, esx1.ipv6];
  nfs.addExport({ id: 1, path, secret: Buffer.alloc(32, 5), clients, fileSystem: files });
  const inventory = await hypervisor.inventory();
  const idOf = (list: readonly { id: string; name: string }[], name: string) =>
    list.find((one) => one.name === name)?.id ?? '';
  return {
    hypervisor,
    hostId: idOf(inventory.hosts, 'esx1'),
    datastore: {
      name: 'rouse-contract',
      server: worldAddresses.ipv4,
      path,
      nfsPort: 2049,
      mountPort: 2049,
    },
    folder: 'source',
    disk: { name: 'scsi0:0', file: flatName, sizeBytes: guestDiskBytes },
    targetDatastoreId: idOf(inventory.datastores, 'production'),
    sourceMachineId: idOf(inventory.machines, 'source'),
    slowBytesPerSecond: 1 << 20,
    scratchDirectory: join(directory, 'scratch'),
    refuses: ['createDisk'],
    guardsProduction: true,
    place: async ({ fileName, text, extraFiles = [] }) => {
      files.put(`/source/${fileName}`, Buffer.from(text));
      for (const { name } of extraFiles) files.put(`/source/${name}`, Buffer.alloc(0));
    },
    close: async () => {
      await hypervisor.close();
      await vcenter.stop();
      await nfs.close();
      await world.end();
    },
  };
});
