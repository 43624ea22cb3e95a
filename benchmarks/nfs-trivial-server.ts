import { parseArgs } from 'node:util';
import { systemClock } from '../src/lib/clock.ts';
import { createNfsServer } from '../src/nfs/server.ts';
import { MemoryFileSystem } from '../src/testing/memory-file-system.ts';

/**
 * The NFS server over a file system in memory: what the protocol alone costs. Prints its ports and
 * serves /bench/disk until its standard input ends; then tells what a call cost.
 */
const { values } = parseArgs({
  options: {
    port: { type: 'string', default: '0' },
    mebibytes: { type: 'string', default: '64' },
  },
});
const sizeBytes = Number(values.mebibytes) * 1_048_576;
const fileSystem = new MemoryFileSystem({ clock: systemClock, capacityBytes: 2 ** 40 });
const log = {
  info: (facts: object, message: string) => console.error(message, facts),
  warn: (facts: object, message: string) => console.error(message, facts),
};
fileSystem.put('/disk', Buffer.alloc(sizeBytes, 0xa5));
const server = createNfsServer({
  clock: systemClock,
  log,
  listen: {
    addresses: ['127.0.0.1'],
    nfsPort: Number(values.port),
    mountPort: Number(values.port),
    portmap: 'off',
  },
});
server.addExport({
  id: 1,
  path: '/bench',
  secret: Buffer.alloc(32, 1),
  clients: ['127.0.0.1'],
  fileSystem,
});
await server.start();
const cpuBefore = process.cpuUsage();
console.log(JSON.stringify({ nfsPort: server.nfsPort, mountPort: server.mountPort }));
process.stdin.resume();
process.stdin.on('end', () => {
  const { reads, writes } = server.exports()[0] ?? { reads: 0, writes: 0 };
  const { user, system } = process.cpuUsage(cpuBefore);
  const perCall = (user + system) / Math.max(1, reads + writes);
  console.log(JSON.stringify({ reads, writes, cpuMicrosecondsPerCall: perCall }));
  void server.close();
});
