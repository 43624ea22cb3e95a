/**
 * The `<disk>.vmdk` beside a flat disk (Virtual Disk Format 5.0, "VMFS flat extent"). ESXi opens
 * the descriptor; KVM opens the flat file as raw and needs none.
 */
export interface DescribedDisk {
  readonly flatName: string;
  readonly sizeBytes: number;
  /** RFC 4122, lower case. */
  readonly uuid: string;
}

export function diskDescriptor(disk: DescribedDisk): string {
  const sectors = Math.ceil(disk.sizeBytes / 512);
  const { cylinders, heads, sectorsPerTrack } = geometryOf(sectors);
  const hex = disk.uuid.replaceAll('-', '');
  const pairs = hex.match(/../g) ?? [];
  const uuid = `${pairs.slice(0, 8).join(' ')}-${pairs.slice(8).join(' ')}`;
  return `# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=${hex.slice(0, 7)}e
parentCID=ffffffff
createType="vmfs"

# Extent description
RW ${sectors} VMFS "${disk.flatName}"

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "${cylinders}"
ddb.geometry.heads = "${heads}"
ddb.geometry.sectors = "${sectorsPerTrack}"
ddb.thinProvisioned = "1"
ddb.uuid = "${uuid}"
ddb.virtualHWVersion = "13"
`;
}

/** What ESXi writes for disks below 1 GiB, below 2 GiB, and above. */
function geometryOf(sectors: number) {
  const gibibyte = (1024 * 1024 * 1024) / 512;
  let heads = 255;
  let sectorsPerTrack = 63;
  if (sectors < gibibyte) [heads, sectorsPerTrack] = [64, 32];
  else if (sectors < 2 * gibibyte) [heads, sectorsPerTrack] = [128, 32];
  const cylinders = Math.max(1, Math.floor(sectors / (heads * sectorsPerTrack)));
  return { cylinders, heads, sectorsPerTrack };
}
