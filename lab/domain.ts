/** libvirt domains of the lab's guests. */
export interface GuestDomain {
  readonly name: string;
  readonly uuid?: string;
  /** A file, or an NFS URL's parts for QEMU's own NFS client. */
  readonly disk: string | { readonly host: string; readonly path: string };
  /** Default raw. */
  readonly format?: 'raw' | 'qcow2';
  /** Where the output of the first serial port is appended. */
  readonly serialLogPath: string;
  /** A unix socket on which the second serial port takes commands. */
  readonly commandSocketPath?: string;
  /** Default 192. */
  readonly memoryMiB?: number;
  /** Default qemu (software emulation): /dev/kvm may exist and be useless. */
  readonly type?: 'qemu' | 'kvm';
  /** Default pc: it boots faster in software emulation. */
  readonly chipset?: 'pc' | 'q35';
  /** Default true: a virtio-scsi controller, which takes disks while the guest runs. */
  readonly scsi?: boolean;
  /** q35: root ports, of which disk, card and channel take one each; default 10. */
  readonly ports?: number;
  /** A channel for the guest's agent (qemu-ga). */
  readonly agentChannel?: boolean;
  readonly mac?: string;
  /** Default none: a card that is plugged into nothing but QEMU's user network. */
  readonly network?: string;
}

export function guestDomainXml(guest: GuestDomain): string {
  const machine = guest.chipset === 'q35' ? 'q35' : 'pc';
  return `<domain type='${guest.type ?? 'qemu'}'>
  <name>${escape(guest.name)}</name>
  ${guest.uuid === undefined ? '' : `<uuid>${guest.uuid}</uuid>`}
  <memory unit='MiB'>${guest.memoryMiB ?? 192}</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='${machine}'>hvm</type><boot dev='hd'/></os>
  <features><acpi/><apic/></features>
  <clock offset='utc'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
${disk(guest)}${machine === 'q35' ? hotPlugPorts(guest.ports ?? 10) : ''}
    <controller type='usb' model='none'/>
${guest.scsi === false ? '' : scsiController}${guest.agentChannel === true ? agentChannel : ''}${network(guest)}
${serial(guest)}
    <video><model type='vga' vram='16384' heads='1'/></video>
    <graphics type='vnc' port='-1' autoport='yes' listen='127.0.0.1'/>
    <memballoon model='none'/>
  </devices>
</domain>
`;
}

/** q35 needs its root declared, and a free port for each disk that is attached later. */
const hotPlugPorts = (count: number) => `
    <controller type='pci' index='0' model='pcie-root'/>
${"    <controller type='pci' model='pcie-root-port'/>\n".repeat(count)}`;

const scsiController = `    <controller type='scsi' index='0' model='virtio-scsi'/>\n`;

const agentChannel = `    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>\n`;

function disk(guest: GuestDomain): string {
  const format = guest.format ?? 'raw';
  const driver = `<driver name='qemu' type='${format}' cache='none' discard='unmap'/>`;
  const target = "<target dev='vda' bus='virtio'/>";
  if (typeof guest.disk === 'string')
    return `    <disk type='file' device='disk'>${driver}<source file='${escape(guest.disk)}'/>${target}</disk>`;
  const { host, path } = guest.disk;
  const source = `<source protocol='nfs' name='${escape(path)}'><host name='${escape(host)}'/></source>`;
  return `    <disk type='network' device='disk'>${driver}${source}${target}</disk>`;
}

function network(guest: GuestDomain): string {
  const mac = guest.mac === undefined ? '' : `<mac address='${guest.mac}'/>`;
  const source =
    guest.network === undefined
      ? "<interface type='user'>"
      : `<interface type='network'><source network='${escape(guest.network)}'/>`;
  return `    ${source}${mac}<model type='virtio'/><rom enabled='no'/></interface>`;
}

function serial(guest: GuestDomain): string {
  const log = escape(guest.serialLogPath);
  const first = `    <serial type='file'><source path='${log}' append='on'/><target port='0'/></serial>`;
  if (guest.commandSocketPath === undefined) return first;
  const source = `<source mode='bind' path='${escape(guest.commandSocketPath)}'/>`;
  return `${first}\n    <serial type='unix'>${source}<target port='1'/></serial>`;
}

function escape(text: string): string {
  const names: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', "'": '&apos;' };
  return text.replace(/[&<>']/g, (character) => names[character] ?? character);
}
