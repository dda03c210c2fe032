package hyperv

// The scripts. They are constants: what they are about comes as JSON on standard input, and nothing is ever put into their
// text. A VM is found by comparing names, because the -Name of Hyper-V's cmdlets takes wildcards, and is then handed on as an
// object. Names are not unique at a Hyper-V host; a name that two VMs have is refused.
//
// Each has to be shorter than 3000 characters with what it is wrapped in: the command line of cmd.exe, which an SSH server on
// Windows goes through, has 8191, and an encoded command takes 8/3 of its script.

// The scripts' own error identifiers.
const (
	idAbsent    = "SitrepAbsent"
	idAmbiguous = "SitrepAmbiguous"
	idOther     = "SitrepOtherDefinition"
)

// before and after are around each script: arguments in $a; answer or error out, as one line of ASCII, because console
// encodings differ.
const (
	before = `$ErrorActionPreference='Stop';$ProgressPreference='SilentlyContinue';$WarningPreference='SilentlyContinue'
$a=[Console]::In.ReadToEnd()|ConvertFrom-Json
function One{$f=@(Get-VM|Where-Object{$_.Name -eq $a.vm});if($f.Count -gt 1){throw 'SitrepAmbiguous'};if($f.Count){$f[0]}}
function Must{$m=One;if(!$m){throw 'SitrepAbsent'};$m}
try{$r=&{
`
	after = `
};$o=@{ok=$true;result=$r}}catch{$o=@{ok=$false;id="$($_.FullyQualifiedErrorId)";category="$($_.CategoryInfo.Category)";message="$($_.Exception.Message)"}}
$j=ConvertTo-Json $o -Compress -Depth 4
[Console]::Out.Write([regex]::Replace($j,'[^\x20-\x7e]',{param($m)'\u{0:x4}' -f [int][char]$m.Value}))
`
)

// stateScript answers the name of the VM's state, or Absent.
const stateScript = `$v=One
if($v){"$($v.State)"}else{'Absent'}`

// drivesScript answers the paths of the VM's drives, as a list also when there is one, or none.
const drivesScript = `$v=Must
,@(@(Get-VMHardDiskDrive -VM $v)|ForEach-Object{"$($_.Path)"}|Where-Object{$_})`

// startScript powers the VM on, or lets it go on.
const startScript = `$v=Must
switch("$($v.State)"){'Running'{}'Paused'{Resume-VM -VM $v}default{Start-VM -VM $v}}
"$((Get-VM -Id $v.Id).State)"`

// stopScript asks the guest to shut down when there is a grace (seconds), cuts the power when it has not, and flushes the disk
// files. -Force is that nobody is asked whether that is meant.
const stopScript = `$v=Must
function State{"$((Get-VM -Id $v.Id).State)"}
if($a.grace -gt 0 -and (State) -eq 'Paused'){Resume-VM -VM $v}
if($a.grace -gt 0 -and (State) -eq 'Running'){
$null=Stop-VM -VM $v -Force -AsJob -Confirm:$false
$end=(Get-Date).AddSeconds($a.grace)
while((State) -ne 'Off' -and (Get-Date) -lt $end){Start-Sleep -Milliseconds 500}
}
if('Off','Saved' -notcontains (State)){Stop-VM -VM $v -TurnOff -Force -Confirm:$false}
foreach($d in @(Get-VMHardDiskDrive -VM $v)){if($d.Path -and (Test-Path -LiteralPath $d.Path)){
$f=[IO.File]::Open($d.Path,'Open','ReadWrite');try{$f.Flush($true)}finally{$f.Close()}}}
State`

// createScript makes the VM, or brings one that is off to the definition. The mark in the notes, which says what the VM was
// made from, is taken away first and written last: a VM without it is one that is not finished, or not ours.
const createScript = `$v=One
$off=$v -and "$($v.State)" -eq 'Off'
if($v -and $v.Notes -match [regex]::Escape($a.mark) -and !($off -and $a.disposable)){return 'Same'}
if($v -and !$off){throw 'SitrepOtherDefinition'}
if($v -and $v.Generation -ne $a.generation){throw 'SitrepOtherDefinition'}
if(!$v){$v=New-VM -Name $a.vm -Generation $a.generation -MemoryStartupBytes $a.memory -NoVHD}
Set-VM -VM $v -Notes ''
Get-VMHardDiskDrive -VM $v|Remove-VMHardDiskDrive
Get-VMNetworkAdapter -VM $v|Remove-VMNetworkAdapter
Set-VM -VM $v -ProcessorCount $a.cpus -StaticMemory -MemoryStartupBytes $a.memory -AutomaticStartAction Nothing
$first=$null;$i=0
foreach($d in $a.disks){
$p=$d.path
if($a.disposable){
$p=Join-Path $v.Path ('sitrep-overlay-'+$i+[IO.Path]::GetExtension($d.path))
if(Test-Path -LiteralPath $p){Remove-Item -LiteralPath $p}
$null=New-VHD -Differencing -Path $p -ParentPath $d.path
}
$c='SCSI';if($a.generation -eq 1 -and $i -eq 0){$c='IDE'}
$h=Add-VMHardDiskDrive -VM $v -ControllerType $c -Path $p -Passthru
if($i -eq 0){$first=$h}
$i++
}
if($a.generation -eq 2){
if($a.os -eq 'windows'){Set-VMFirmware -VM $v -FirstBootDevice $first}else{Set-VMFirmware -VM $v -FirstBootDevice $first -EnableSecureBoot Off}
}
foreach($n in $a.nics){
$k=@{VM=$v;Name=$n.name}
if($n.switch){$k.SwitchName=$n.switch}
if($n.mac){$k.StaticMacAddress=$n.mac}
Add-VMNetworkAdapter @k
}
Set-VM -VM $v -Notes $a.mark
'Made'`

// deleteScript powers the VM off and removes it with its overlays; disk files stay.
const deleteScript = `$v=One
if(!$v){return 'Absent'}
if('Off','Saved' -notcontains "$($v.State)"){Stop-VM -VM $v -TurnOff -Force -Confirm:$false}
foreach($d in @(Get-VMHardDiskDrive -VM $v)){
if($d.Path -and (Split-Path $d.Path -Leaf) -like 'sitrep-overlay-*' -and (Split-Path $d.Path) -eq $v.Path -and (Test-Path -LiteralPath $d.Path)){Remove-Item -LiteralPath $d.Path}
}
Remove-VM -VM $v -Force -Confirm:$false
'Absent'`

// freezeScript holds the VM; a line in its notes says that it was us. It answers whether the VM is held.
const freezeScript = `$v=Must
$mark='sitrep: frozen'
if("$($v.State)" -eq 'Running'){
if($v.Notes -notmatch $mark){Set-VM -VM $v -Notes ((@($v.Notes,$mark)|Where-Object{$_}) -join [Environment]::NewLine)}
Suspend-VM -VM $v
return $true
}
"$($v.State)" -eq 'Paused' -and $v.Notes -match $mark`

// thawScript lets the VM go on. It answers the VM's state.
const thawScript = `$v=Must
if("$($v.State)" -eq 'Paused'){Resume-VM -VM $v}
Set-VM -VM $v -Notes ($v.Notes -replace '\r?\n?sitrep: frozen','')
"$((Get-VM -Id $v.Id).State)"`
